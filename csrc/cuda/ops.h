// The table of the ops that have a CUDA kernel, as in cpu/ops.h: sparse_ft._C has them as <name>cuda or
// <name>cuda_. Tensors and pointers lie on the device. Enqueued on `stream`; nothing is read back. Each
// throws std::runtime_error that names the CUDA error.
#pragma once

#include <string>

#include "../cpu/ops.h"

// masked_adamw_cuda_: grad_scale and found_inf are addresses of one float each, or 0; skip_nonfinite
// needs found_inf.
#define SFT_CUDA_OPS(op) \
  op(void, gather_selected_cuda, In matrix, Where where, Out values) \
  op(void, scatter_selected_cuda_, Out matrix, Where where, Out values, ScatterMode mode) \
  op(void, masked_adamw_cuda_, Known tensors, Addresses grads, Settings settings, bool maximize, \
     uintptr_t grad_scale, uintptr_t found_inf, bool skip_nonfinite)

#define SFT_DECLARE_CUDA(result, name, ...) result name(__VA_ARGS__, uintptr_t stream);

namespace sparse_ft {
SFT_CUDA_OPS(SFT_DECLARE_CUDA)

// Empty where the kernels run on that device, else the CUDA error that says why they do not.
std::string why_not_on_cuda_device(int device);
}
