// The update of masked_adamw_ on tensors whose entries have an age, a factor or an origin of their own. See masked_adamw.cu.
#include "adamw_chunk.h"
#include "adamw_varied_thread.h"
#include "masked_adamw_varied.h"

namespace sparse_ft {
namespace {

// Ages, factors and origins wait in registers for their entries: two blocks a processor.
template <class F>
__global__ void __launch_bounds__(kAdamWThreads, 2) masked_adamw_varied_kernel(const __grid_constant__ AdamWTable table, StepFlags flags) {
  using Wide = typename F::Wide;
  static_assert(kGenerations == kAdamWThreads, "an age a thread");
  __shared__ AdamWBlock block;
  __shared__ AdamWVaried<Wide> varied;
  __shared__ RandomKey random;
  if (found_nonfinite(flags)) return;
  if (threadIdx.x == 0) {
    block = block_at<F>(table, blockIdx.x);
    varied.constants = constants_of<Wide>(block.tensor, flags);
    varied.variation = variation_at(table, tensor_of(table, blockIdx.x));
    random = random_of(block.tensor);
  }
  __syncthreads();
  if (varied.variation.generation) varied.age[threadIdx.x] = age_of<Wide>(block.tensor, varied.variation, threadIdx.x);
  if constexpr (F::kEightBit) {
    __shared__ MomentMaps maps;
    stage(maps);
    __syncthreads();
    update_eight_bit_chunk<F>(block, VariedUpdate<F>{&varied, {}, {}, {}}, random, maps);
  } else {
    __syncthreads();
    update_chunk<F>(block, threadIdx.x, VariedUpdate<F>{&varied, {}, {}, {}}, random);
  }
}

}  // namespace

void launch_varied(const AdamWTable& table, StepFlags flags, cudaStream_t queue) {
  with_format(table.format, [&](auto f) {
    masked_adamw_varied_kernel<decltype(f)><<<blocks_of(table), kAdamWThreads, 0, queue>>>(table, flags);
  });
}

}  // namespace sparse_ft
