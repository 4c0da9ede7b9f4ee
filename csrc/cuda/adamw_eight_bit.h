// What one thread does in a pass over entries whose moments have 8 bits: before and after the threads that share a block of codes agree on
// its absmax. Shared by host and device.
#pragma once

#include "adamw_thread.h"

namespace sparse_ft {

template <class F>
struct WideMoments {  // of one pack
  float exp_avg[F::kPack], exp_avg_sq[F::kPack];
  uint32_t highest_exp_avg, highest_exp_avg_sq;  // magnitudes' bits: of the pack, then of the block
};

template <class F>
struct EightBitPass {
  AdamWPacks<F> held;
  WideMoments<F> moments[F::kGroups];
};

template <class F, class Update>
SFT_HD void update_eight_bit_pack(const Update& for_all, RandomKey random, const AdamWTensor& t, const MomentMaps& maps, int64_t k,
                                  int64_t left, AdamWPack<F>& pack, WideMoments<F>& moments) {
  moments.highest_exp_avg = moments.highest_exp_avg_sq = 0;
  if (left <= 0) return;
  const Update update = of_pack(for_all, k, left);
  const RandomKey of_value = stream_key(random, static_cast<uint32_t>(k >> 32), 0);
  const float exp_avg_absmax = load(t.storage.exp_avg_absmax + k / kQuantBlock);
  const float exp_avg_sq_absmax = load(t.storage.exp_avg_sq_absmax + k / kQuantBlock);
  SFT_UNROLL
  for (int i = 0; i < F::kPack; ++i) {
    float p = read_value(pack, i);
    float m = dequantize(maps.exp_avg, pack.exp_avg.x[i], exp_avg_absmax);
    float v = dequantize(maps.exp_avg_sq, pack.exp_avg_sq.x[i], exp_avg_sq_absmax);
    step_entry(update, i, convert(pack.grad.x[i], Tag<float>()), p, m, v);
    write_value(pack, i, p, of_value, k + i);
    moments.exp_avg[i] = m, moments.exp_avg_sq[i] = v;
    if (i >= left) continue;
    moments.highest_exp_avg = higher(moments.highest_exp_avg, magnitude_bits(m));
    moments.highest_exp_avg_sq = higher(moments.highest_exp_avg_sq, magnitude_bits(v));
  }
}

// Up to the highest magnitudes of the thread's own entries; 0 where it has none.
template <class F, class Update>
SFT_HD EightBitPass<F> begin_eight_bit(const AdamWBlock& block, int64_t begin, int thread, const Update& update, RandomKey random,
                                       const MomentMaps& maps) {
  EightBitPass<F> pass;
  pass.held = load_state<F>(block, begin, thread);
  SFT_UNROLL
  for (int group = 0; group < F::kGroups; ++group) {
    const int64_t k = first_entry<F>(begin, group, thread);
    update_eight_bit_pack(update, random, block.tensor, maps, k, block.end - k, pass.held.group[group], pass.moments[group]);
  }
  return pass;
}

// From the highest magnitudes of the blocks on.
template <class F>
SFT_HD void end_eight_bit(const AdamWBlock& block, int64_t begin, int thread, const MomentMaps& maps, EightBitPass<F>& pass) {
  const AdamWStorage& storage = block.tensor.storage;
  SFT_UNROLL
  for (int group = 0; group < F::kGroups; ++group) {
    const int64_t k = first_entry<F>(begin, group, thread), left = block.end - k;
    if (left <= 0) continue;
    AdamWPack<F>& pack = pass.held.group[group];
    const WideMoments<F>& moments = pass.moments[group];
    const float exp_avg_absmax = absmax_of(moments.highest_exp_avg), exp_avg_sq_absmax = absmax_of(moments.highest_exp_avg_sq);
    SFT_UNROLL
    for (int i = 0; i < F::kPack; ++i) {
      pack.exp_avg.x[i] = nearest_code(maps.exp_avg, moments.exp_avg[i] / divisor_of(exp_avg_absmax));
      pack.exp_avg_sq.x[i] = nearest_code(maps.exp_avg_sq, moments.exp_avg_sq[i] / divisor_of(exp_avg_sq_absmax));
    }
    store_pack_of_state(block.tensor, k, left, pack);
    if (thread % F::kLanes) continue;
    store(storage.exp_avg_absmax + k / kQuantBlock, exp_avg_absmax);
    store(storage.exp_avg_sq_absmax + k / kQuantBlock, exp_avg_sq_absmax);
  }
  write_packs_through(block, begin, thread, pass.held);
}

}  // namespace sparse_ft
