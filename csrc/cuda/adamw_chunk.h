// What a block of the masked_adamw_ kernels does where moments have 8 bits: its threads agree on the absmax of a block of codes.
#pragma once

#include "adamw_eight_bit.h"

namespace sparse_ft {
namespace {

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

template <class F, class Update>
__device__ void update_eight_bit_chunk(const AdamWBlock& block, const Update& update, RandomKey random, const MomentMaps& maps) {
  for (int64_t begin = block.begin; begin < block.end; begin += F::kPass) {
    EightBitPass<F> pass = begin_eight_bit<F>(block, begin, threadIdx.x, update, random, maps);
    SFT_UNROLL
    for (int group = 0; group < F::kGroups; ++group) {
      WideMoments<F>& moments = pass.moments[group];
      moments.highest_exp_avg = highest_of<F::kLanes>(moments.highest_exp_avg);
      moments.highest_exp_avg_sq = highest_of<F::kLanes>(moments.highest_exp_avg_sq);
    }
    end_eight_bit(block, begin, threadIdx.x, maps, pass);
  }
}

}  // namespace
}  // namespace sparse_ft
