// The table of ops: what every compiled variant of the CPU kernels offers, and what sparse_ft._C has
// under the same names. An op checks its arguments itself (checks.h): whatever it is given, it writes
// nowhere else than into its outputs.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "../activation.h"
#include "../adamw_tensor.h"
#include "../tensor.h"

namespace sparse_ft {

enum ScatterMode : int { kCopy = 0, kAdd = 1, kSwap = 2 };
constexpr const char* kScatterModeNames[] = {"copy", "add", "swap"};

using Pair = std::array<int64_t, 2>;  // down, across

using In = const Tensor&;
using Out = const Tensor&;
using MaybeIn = const MaybeTensor&;
using MaybeOut = const MaybeTensor&;
using Where = const Selection&;
using Known = const std::vector<const KnownTensor*>&;
using Addresses = const std::vector<uintptr_t>&;
using Settings = const std::vector<const AdamWSettings*>&;

// One line an op: result, name, arguments, whose names are those that messages have; a number of
// threads follows them. A kernel is in cpu/<name>.cpp, in the namespace of each variant.
// masked_adamw_: whether a gradient was not finite, and nothing changed.
#define SFT_CPU_OPS(op) \
  op(void, gather_selected, In matrix, Where where, Out values, int64_t first) \
  op(void, scatter_selected_, Out matrix, Where where, Out values, ScatterMode mode) \
  op(void, selected_wgrad, In grad_output, In input, Where where, Out values, bool accumulate) \
  op(void, dense_product, In input, In weight, MaybeIn bias, Out output) \
  op(bool, masked_adamw_, Known tensors, Addresses grads, Settings settings, bool maximize, \
     double inv_scale, bool skip_nonfinite) \
  op(void, activation, In input, Activation activation, Out output) \
  op(void, activation_backward, In grad_output, In input, Activation activation, Out grad_input) \
  op(void, gated_product, In gate, In up, Activation activation, Out output) \
  op(void, gated_product_backward, In grad_output, In gate, In up, Activation activation, \
     Out grad_gate, Out grad_up) \
  op(void, rms_norm, In input, MaybeIn weight, double eps, double offset, Out output, Out rstd) \
  op(void, rms_norm_backward, In grad_output, In input, In rstd, MaybeIn weight, double offset, \
     Out grad_input) \
  op(void, positive_bits, In input, Out bits, MaybeOut relu) \
  op(void, where_bits, In grad, In bits, double scale, Out output) \
  op(void, batch_norm_, Out input, In mean, In variance, MaybeIn weight, MaybeIn bias, double eps, \
     MaybeOut bits) \
  op(void, batch_norm_backward, In grad_output, In variance, MaybeIn weight, double eps, \
     MaybeIn positive, Out grad_input) \
  op(void, max_pool, In input, Pair kernel, Pair stride, Pair padding, Pair dilation, Out output, \
     Out numbers)

#define SFT_POINTER(result, name, ...) result (*name)(__VA_ARGS__, int threads);
#define SFT_DECLARE(result, name, ...) result name(__VA_ARGS__, int threads);

struct CpuOps {
  SFT_CPU_OPS(SFT_POINTER)
};

namespace baseline {
SFT_CPU_OPS(SFT_DECLARE)
}
namespace avx2 {
SFT_CPU_OPS(SFT_DECLARE)
}
namespace avx512 {
SFT_CPU_OPS(SFT_DECLARE)
}

}  // namespace sparse_ft
