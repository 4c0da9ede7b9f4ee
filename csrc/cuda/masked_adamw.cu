// Three launches for up to 576 tensors of one format (dtype, rounding): a look at every gradient (if asked for), the update, and one thread
// a tensor that advances its step. Another format takes another look and update.
#include "masked_adamw.h"

#include "adamw_thread.h"
#include "launch.h"

namespace sparse_ft {
namespace {

constexpr const char* kOp = "masked_adamw_cuda_";

template <class F>
__global__ void __launch_bounds__(kAdamWThreads) nonfinite_kernel(const __grid_constant__ AdamWTable table, float* found_inf) {
  __shared__ AdamWBlock block;
  if (threadIdx.x == 0) block = block_at<F>(table, blockIdx.x);
  __syncthreads();
  if (any_nonfinite<F>(block, threadIdx.x)) *found_inf = 1.0f;  // whoever writes writes the same
}

// What is the same for a whole block stays in shared memory: in registers it would cost a third of the threads that run at once.
// Without the bound on blocks ptxas aims at 64 registers and spills.
template <class F>
__global__ void __launch_bounds__(kAdamWThreads, F::kBlocks)
masked_adamw_kernel(const __grid_constant__ AdamWTable table, StepFlags flags) {
  using Wide = typename F::Wide;
  __shared__ AdamWBlock block;
  __shared__ AdamWConstants<Wide> constants;
  __shared__ RandomKey random;
  if (found_nonfinite(flags)) return;
  if (threadIdx.x == 0) {
    block = block_at<F>(table, blockIdx.x);
    constants = constants_of<Wide>(block.tensor, flags);
    random = random_of(block.tensor);
  }
  __syncthreads();
  update_chunk<F>(block, threadIdx.x, constants, random);
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
      with_format(table.format, [&](auto f) {
        nonfinite_kernel<decltype(f)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, found_inf);
      });
  for (const AdamWTable& table : tables)
    with_format(table.format, [&](auto f) {
      masked_adamw_kernel<decltype(f)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, flags);
    });
  for (const StepTable& steps : step_tables(tensors))
    steps_kernel<<<(steps.tensors + kAdamWThreads - 1) / kAdamWThreads, kAdamWThreads, 0, queue>>>(steps, flags);
  check(kOp, cudaGetLastError());
}

}  // namespace cuda
}  // namespace sparse_ft
