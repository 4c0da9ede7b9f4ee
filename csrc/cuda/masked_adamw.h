#pragma once

#include <cstdint>
#include <vector>

#include "../cpu/ops.h"

namespace sparse_ft {
namespace cuda {

// The native counterpart of masked_adamw_ on a CUDA device; every pointer, also inside of the tensors, is a device pointer. Enqueued on
// `stream`; nothing is read back. skip_nonfinite needs found_inf. Throws std::runtime_error that names the CUDA error.
void masked_adamw_(const std::vector<AdamWTensor>& tensors, bool maximize, const float* grad_scale, float* found_inf, bool skip_nonfinite,
                   uintptr_t stream);

}  // namespace cuda
}  // namespace sparse_ft
