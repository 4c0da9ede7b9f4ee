// What every compiled variant of the CPU kernels offers. Pointers are validated by the caller, in bindings.cpp.
#pragma once

#include <cstdint>

#include "../activation.h"
#include "../layout.h"

namespace sparse_ft {

enum ScatterMode : int { kCopy = 0, kAdd = 1, kSwap = 2 };

// kNonfinite: of a gradient, and nothing changed. kOutside: an index names entries that their matrix has not; these were left out.
enum StepOutcome : int { kStepped = 0, kNonfinite = 1, kOutside = 2 };

struct WgradOperands {
  const void* grad_output;  // [tokens, rows]
  int64_t grad_output_stride;
  const void* input;  // [tokens, columns], or [tokens, C] in index order when compact_input
  int64_t input_stride;
  DType dtype;
  int64_t tokens;
  bool compact_input;  // kind columns only
};

// output [tokens, columns] = input [tokens, inner] · weight + bias, all float32.
struct DenseOperands {
  const float* input;  // [tokens, inner]
  int64_t input_stride;
  const float* weight;  // [inner, columns], or [columns, inner] when weight_transposed
  int64_t weight_stride;
  bool weight_transposed;
  const float* bias;  // [columns], or null
  int64_t tokens, inner, columns;
};

// How values and moments are kept in fewer bits than they are computed in; null and false where nothing is particular about them.
struct AdamWStorage {
  int16_t* correction;  // [count]: with values in bfloat16 the master; moments are float32 then
  bool by_chance;       // what is stored in 16 bits is rounded by chance
  uint64_t seed;        // of that
  float *exp_avg_absmax, *exp_avg_sq_absmax;  // [ceil(count / kQuantBlock)]: moments are codes of 8 bits; both or neither
};

struct AdamWTensor {
  void* values;      // [count]
  const void* grad;  // [count]
  void* exp_avg;     // [count]
  void* exp_avg_sq;  // [count]
  float* step;       // one number
  int64_t count;
  DType dtype;         // of values and grad, and of the moments unless `storage` says otherwise
  void* weight;        // [layout.rows, layout.columns], or null: nothing to write through
  DType weight_dtype;
  Layout layout;
  double lr, beta1, beta2, eps, weight_decay;
  const float* lr_at;  // one number that counts instead of lr, or null
  AdamWStorage storage;
};

struct Rows {
  const void* data;  // [rows, columns]: the elements of a row lie next to each other
  int64_t stride;    // from one row to the next
};

struct NormOperands {
  Rows input;
  DType input_dtype;
  const void* weight;  // [columns], or null: no factor
  DType weight_dtype;
  int64_t rows, columns;
  double offset;  // added to the weight
  DType wide;     // of the arithmetic and of rstd [rows]: float32 or float64
};

struct Channels {
  const void* data;  // [channels], or null
  DType dtype;
};

struct ChannelOperands {
  int64_t outer, channels, inner;  // of a tensor [outer, channels, inner]
  Channels variance;
  Channels weight;  // null: 1
  double eps;
};

struct PoolWindow {
  int64_t size[2], out_size[2];  // of a plane and of what it becomes
  int64_t kernel[2], stride[2], padding[2], dilation[2];
};

// gather_selected and scatter_selected_: false where the index names entries that the matrix has not. These were left out. Rows, columns
// and blocks are not looked at, nor is any index of selected_wgrad: `inside` of walk.h is for the caller.
struct CpuOps {
  bool (*gather_selected)(const void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, int threads);
  bool (*scatter_selected_)(void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, ScatterMode mode,
                            int threads);
  void (*selected_wgrad)(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads);
  void (*dense_product)(const DenseOperands& operands, float* output, int threads);
  StepOutcome (*masked_adamw_)(const AdamWTensor* tensors, int64_t tensor_count, bool maximize, double inv_scale, bool skip_nonfinite,
                               int threads);
  void (*activation)(Rows input, DType dtype, int64_t rows, int64_t columns, Activation activation, void* output, int threads);
  void (*activation_backward)(Rows grad_output, Rows input, DType dtype, int64_t rows, int64_t columns, Activation activation,
                              void* grad_input, int threads);
  void (*gated_product)(Rows gate, Rows up, DType dtype, int64_t rows, int64_t columns, Activation activation, void* output, int threads);
  void (*gated_product_backward)(Rows grad_output, Rows gate, Rows up, DType dtype, int64_t rows, int64_t columns, Activation activation,
                                 void* grad_gate, void* grad_up, int threads);
  void (*rms_norm)(const NormOperands& operands, double eps, void* output, DType output_dtype, void* rstd, int threads);
  void (*rms_norm_backward)(const NormOperands& operands, Rows grad_output, DType grad_output_dtype, const void* rstd, void* grad_input,
                            int threads);
  void (*positive_bits)(const void* input, DType dtype, int64_t count, uint8_t* bits, void* relu, int threads);
  void (*where_bits)(const void* grad, DType dtype, int64_t count, const uint8_t* bits, double scale, void* output, int threads);
  void (*batch_norm_)(const ChannelOperands& operands, Channels mean, Channels bias, void* input, DType dtype, uint8_t* bits, int threads);
  void (*batch_norm_backward)(const ChannelOperands& operands, const void* grad_output, DType dtype, const uint8_t* positive,
                              void* grad_input, int threads);
  void (*max_pool)(const void* input, DType dtype, int64_t planes, const PoolWindow& window, void* output, uint8_t* numbers, int threads);
};

#define SFT_DECLARE_VARIANT(variant)                                                                                                  \
  namespace variant {                                                                                                                 \
  bool gather_selected(const void*, DType, const Layout&, void*, DType, int);                                                         \
  bool scatter_selected_(void*, DType, const Layout&, void*, DType, ScatterMode, int);                                                \
  void selected_wgrad(const WgradOperands&, const Layout&, void*, DType, bool, int);                                                  \
  void dense_product(const DenseOperands&, float*, int);                                                                              \
  StepOutcome masked_adamw_(const AdamWTensor*, int64_t, bool, double, bool, int);                                                    \
  void activation(Rows, DType, int64_t, int64_t, Activation, void*, int);                                                             \
  void activation_backward(Rows, Rows, DType, int64_t, int64_t, Activation, void*, int);                                              \
  void gated_product(Rows, Rows, DType, int64_t, int64_t, Activation, void*, int);                                                    \
  void gated_product_backward(Rows, Rows, Rows, DType, int64_t, int64_t, Activation, void*, void*, int);                              \
  void rms_norm(const NormOperands&, double, void*, DType, void*, int);                                                               \
  void rms_norm_backward(const NormOperands&, Rows, DType, const void*, void*, int);                                                  \
  void positive_bits(const void*, DType, int64_t, uint8_t*, void*, int);                                                              \
  void where_bits(const void*, DType, int64_t, const uint8_t*, double, void*, int);                                                   \
  void batch_norm_(const ChannelOperands&, Channels, Channels, void*, DType, uint8_t*, int);                                          \
  void batch_norm_backward(const ChannelOperands&, const void*, DType, const uint8_t*, void*, int);                                   \
  void max_pool(const void*, DType, int64_t, const PoolWindow&, void*, uint8_t*, int);                                                \
  }

SFT_DECLARE_VARIANT(baseline)
SFT_DECLARE_VARIANT(avx2)
SFT_DECLARE_VARIANT(avx512)

}  // namespace sparse_ft
