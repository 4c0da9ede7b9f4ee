// The launch for tensors whose entries have an age, a factor or an origin of their own: in a compilation unit of its own, for beside these
// kernels ptxas gives the plain ones a stack frame.
#pragma once

#include <cuda_runtime.h>

#include "adamw_table.h"

namespace sparse_ft {

void launch_varied(const AdamWTable& table, StepFlags flags, cudaStream_t queue);

}  // namespace sparse_ft
