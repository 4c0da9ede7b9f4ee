#pragma once

#include <cstdint>

#include "../layout.h"

namespace sparse_ft {
namespace cuda {

// The native counterpart of gather_selected on a CUDA device; all pointers are device pointers. Enqueued on `stream`.
// Throws std::runtime_error that names the CUDA error.
void gather_selected(const void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, uintptr_t stream);

}  // namespace cuda
}  // namespace sparse_ft
