// Three launches for up to 576 tensors of one format (dtype, rounding): a look at every gradient (if asked for), the update, and one thread
// a tensor that advances its step. Another format takes another look and update.
#include "adamw_eight_bit.h"
#include "launch.h"
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

// Staged into shared memory: a warp looks up 32 codes at once.
__device__ constexpr MomentMaps kMaps = moment_maps();

__device__ void stage(MomentMaps& maps) {
  static_assert(sizeof(MomentMaps) == 4 * kAdamWThreads * sizeof(float), "four numbers a thread");
  for (int i = threadIdx.x; i < 4 * kAdamWThreads; i += kAdamWThreads)
    reinterpret_cast<float*>(&maps)[i] = reinterpret_cast<const float*>(&kMaps)[i];
}

// Over the lanes that share a block of codes.
template <int Lanes>
__device__ uint32_t highest_of(uint32_t highest) {
  static_assert(Lanes <= 32, "they are of one warp");
  for (int apart = Lanes / 2; apart; apart /= 2) highest = higher(highest, __shfl_xor_sync(0xffffffffu, highest, apart));
  return highest;
}

template <class F>
__device__ void update_eight_bit_chunk(const AdamWBlock& block, const AdamWConstants<float>& constants, RandomKey random,
                                       const MomentMaps& maps) {
  for (int64_t begin = block.begin; begin < block.end; begin += F::kPass) {
    EightBitPass<F> pass = begin_eight_bit<F>(block, begin, threadIdx.x, constants, random, maps);
    SFT_UNROLL
    for (int group = 0; group < F::kGroups; ++group) {
      WideMoments<F>& moments = pass.moments[group];
      moments.highest_exp_avg = highest_of<F::kLanes>(moments.highest_exp_avg);
      moments.highest_exp_avg_sq = highest_of<F::kLanes>(moments.highest_exp_avg_sq);
    }
    end_eight_bit(block, begin, threadIdx.x, maps, pass);
  }
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
    update_eight_bit_chunk<F>(block, constants, random, maps);
  } else {
    __syncthreads();
    update_chunk<F>(block, threadIdx.x, constants, random);
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
    with_format(table.format, [&](auto f) {
      masked_adamw_kernel<decltype(f)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, flags);
    });
  for (const StepTable& steps : step_tables(tensors))
    steps_kernel<<<(steps.tensors + kAdamWThreads - 1) / kAdamWThreads, kAdamWThreads, 0, queue>>>(steps, flags);
  check(kOp, cudaGetLastError());
}

}  // namespace sparse_ft
