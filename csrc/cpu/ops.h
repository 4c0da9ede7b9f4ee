// What every compiled variant of the CPU kernels offers. Pointers are validated by the caller, in bindings.cpp.
#pragma once

#include <cstdint>

#include "../layout.h"

namespace sparse_ft {

enum ScatterMode : int { kCopy = 0, kAdd = 1, kSwap = 2 };

struct WgradOperands {
  const void* grad_output;  // [tokens, rows]
  int64_t grad_output_stride;
  const void* input;  // [tokens, columns], or [tokens, C] in index order when compact_input
  int64_t input_stride;
  DType dtype;
  int64_t tokens;
  bool compact_input;  // kind columns only
};

struct AdamWTensor {
  void* values;      // [count]
  const void* grad;  // [count]
  void* exp_avg;     // [count]
  void* exp_avg_sq;  // [count]
  float* step;       // one number
  int64_t count;
  DType dtype;         // of the four above
  void* weight;        // [layout.rows, layout.columns], or null: nothing to write through
  DType weight_dtype;
  Layout layout;
  double lr, beta1, beta2, eps, weight_decay;
};

struct CpuOps {
  void (*gather_selected)(const void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, int threads);
  void (*scatter_selected_)(void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, ScatterMode mode,
                            int threads);
  void (*selected_wgrad)(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads);
  bool (*masked_adamw_)(const AdamWTensor* tensors, int64_t tensor_count, bool maximize, double inv_scale, bool skip_nonfinite, int threads);
};

#define SFT_DECLARE_VARIANT(variant)                                                                                                  \
  namespace variant {                                                                                                                 \
  void gather_selected(const void*, DType, const Layout&, void*, DType, int);                                                         \
  void scatter_selected_(void*, DType, const Layout&, void*, DType, ScatterMode, int);                                                \
  void selected_wgrad(const WgradOperands&, const Layout&, void*, DType, bool, int);                                                  \
  bool masked_adamw_(const AdamWTensor*, int64_t, bool, double, bool, int);                                                           \
  }

SFT_DECLARE_VARIANT(baseline)
SFT_DECLARE_VARIANT(avx2)
SFT_DECLARE_VARIANT(avx512)

}  // namespace sparse_ft
