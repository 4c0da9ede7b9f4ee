#pragma once

#include <cstdint>

#include "../cpu/ops.h"

namespace sparse_ft {
namespace cuda {

// The native counterpart of scatter_selected_ on a CUDA device; all pointers are device pointers. Enqueued on `stream`.
// Throws std::runtime_error that names the CUDA error.
void scatter_selected_(void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, ScatterMode mode,
                       uintptr_t stream);

}  // namespace cuda
}  // namespace sparse_ft
