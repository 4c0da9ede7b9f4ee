// Three launches for up to 576 tensors of one format (dtype, rounding): a look at every gradient (if asked for), the update, and one thread
// a tensor that advances its step. Another format takes another look and update. Where entries differ: masked_adamw_varied.cu.
#include "adamw_chunk.h"
#include "launch.h"
#include "masked_adamw_varied.h"
#include "ops.h"

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
  if constexpr (F::kEightBit) {
    __shared__ MomentMaps maps;
    stage(maps);
    __syncthreads();
    update_eight_bit_chunk<F>(block, PlainUpdate<F>{&constants}, random, maps);
  } else {
    __syncthreads();
    update_chunk<F>(block, threadIdx.x, PlainUpdate<F>{&constants}, random);
  }
}

__global__ void steps_kernel(const __grid_constant__ StepTable table, StepFlags flags) {
  advance_step(table, flags, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
}

}  // namespace

void masked_adamw_cuda_(Known known, Addresses grads, Settings settings, bool maximize,
                        uintptr_t grad_scale, uintptr_t found_inf, bool skip_nonfinite,
                        uintptr_t stream) {
  if (skip_nonfinite && !found_inf)
    throw std::invalid_argument("found_inf: expected an address with skip_nonfinite, got 0");
  const std::vector<AdamWTensor> tensors = stepping(known, grads, settings, kCuda);
  if (tensors.empty()) return;
  const std::vector<AdamWTable> tables = adamw_tables(tensors);
  const DeviceOf device(kOp, "step", tensors[0].step);
  const cudaStream_t queue = reinterpret_cast<cudaStream_t>(stream);
  float* const found = reinterpret_cast<float*>(found_inf);
  const StepFlags flags{reinterpret_cast<const float*>(grad_scale), found, maximize};
  for (const AdamWTable& table : tables)
    if (skip_nonfinite)
      with_format(table.format, [&](auto f) {
        nonfinite_kernel<decltype(f)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, found);
      });
  for (const AdamWTable& table : tables)
    if (table.format.varied) launch_varied(table, flags, queue);
    else
      with_format(table.format, [&](auto f) {
        masked_adamw_kernel<decltype(f)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, flags);
      });
  for (const StepTable& steps : step_tables(tensors))
    steps_kernel<<<(steps.tensors + kAdamWThreads - 1) / kAdamWThreads, kAdamWThreads, 0, queue>>>(steps, flags);
  check(kOp, cudaGetLastError());
}

}  // namespace sparse_ft
