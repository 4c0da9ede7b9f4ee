// Three launches for up to 576 tensors whose values have one dtype: a look at every gradient (if asked for), the update, and one thread a
// tensor that advances its step. Another dtype takes another look and update.
#include "masked_adamw.h"

#include "adamw_thread.h"
#include "launch.h"

namespace sparse_ft {
namespace {

constexpr const char* kOp = "masked_adamw_cuda_";

template <class T>
__global__ void __launch_bounds__(kAdamWThreads) nonfinite_kernel(const __grid_constant__ AdamWTable table, float* found_inf) {
  __shared__ AdamWBlock block;
  if (threadIdx.x == 0) block = block_at<T>(table, blockIdx.x);
  __syncthreads();
  if (any_nonfinite<T>(block, threadIdx.x)) *found_inf = 1.0f;  // whoever writes writes the same
}

// What is the same for a whole block stays in shared memory: in registers it would cost a third of the threads that run at once.
// Three blocks a processor keep 120 KiB of loads in flight; without the bound ptxas aims at 64 registers and spills.
template <class T>
__global__ void __launch_bounds__(kAdamWThreads, 3) masked_adamw_kernel(const __grid_constant__ AdamWTable table, StepFlags flags) {
  using Wide = typename Compute<T, T>::type;
  __shared__ AdamWBlock block;
  __shared__ AdamWConstants<Wide> constants;
  if (found_nonfinite(flags)) return;
  if (threadIdx.x == 0) {
    block = block_at<T>(table, blockIdx.x);
    constants = constants_of<Wide>(block.tensor, flags);
  }
  __syncthreads();
  update_chunk<T>(block, threadIdx.x, constants);
}

__global__ void steps_kernel(const __grid_constant__ StepTable table, StepFlags flags) {
  advance_step(table, flags, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
}

}  // namespace

namespace cuda {

void masked_adamw_(const std::vector<AdamWTensor>& tensors, bool maximize, const float* grad_scale, float* found_inf, bool skip_nonfinite,
                   uintptr_t stream) {
  if (tensors.empty()) return;
  const std::vector<AdamWTable> tables = adamw_tables(tensors);
  const DeviceOf device(kOp, "step", tensors[0].step);
  const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
  const StepFlags flags{grad_scale, found_inf, maximize};
  for (const AdamWTable& table : tables)
    if (skip_nonfinite)
      with_dtype(table.dtype, [&](auto t) {
        nonfinite_kernel<decltype(t)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, found_inf);
      });
  for (const AdamWTable& table : tables)
    with_dtype(table.dtype, [&](auto t) {
      masked_adamw_kernel<decltype(t)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, flags);
    });
  for (const StepTable& steps : step_tables(tensors))
    steps_kernel<<<(steps.tensors + kAdamWThreads - 1) / kAdamWThreads, kAdamWThreads, 0, queue>>>(steps, flags);
  check(kOp, cudaGetLastError());
}

}  // namespace cuda
}  // namespace sparse_ft
