// What one thread of the masked_adamw_ launches does. Shared by host and device.
#pragma once

#include <algorithm>
#include <vector>

#include "../adamw.h"
#include "../rounding.h"
#include "adamw_table.h"

namespace sparse_ft {

static inline int64_t adamw_chunk(FormatCode format) {
  int64_t chunk = 0;
  with_format(format, [&](auto f) { chunk = decltype(f)::kChunk; });
  return chunk;
}

// A thread's packs lie a block apart, so that neighbours read neighbouring memory. begin: of the pass.
template <class F>
SFT_HD int64_t first_entry(int64_t begin, int group, int thread) {
  return begin + (group * kAdamWThreads + thread) * F::kPack;
}

// The tensor and the chunk of it that a block works on.
struct AdamWBlock {
  AdamWTensor tensor;
  int64_t begin, end;  // entries
};

template <class F>
SFT_HD AdamWBlock block_at(const AdamWTable& table, uint32_t block) {
  const int i = tensor_of(table, block);
  const AdamWTensor t = tensor_at(table, i);
  const int64_t begin = (block - table.first_chunk[i]) * F::kChunk, end = begin + F::kChunk;
  return AdamWBlock{t, begin, end < t.count ? end : t.count};
}

SFT_HD bool nonfinite(float x) { return (float_bits(x) & 0x7f800000u) == 0x7f800000u; }
SFT_HD bool nonfinite(BFloat16 x) { return (x.bits & 0x7f80u) == 0x7f80u; }
SFT_HD bool nonfinite(Float16 x) { return (x.bits & 0x7c00u) == 0x7c00u; }
SFT_HD bool nonfinite(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return (bits & 0x7ff0000000000000u) == 0x7ff0000000000000u;
}

template <class F>
SFT_HD bool any_nonfinite(const AdamWBlock& block, int thread) {
  using T = typename F::Value;
  bool found = false;
  for (int64_t begin = block.begin; begin < block.end; begin += F::kPass) {
    SFT_UNROLL
    for (int group = 0; group < F::kGroups; ++group) {
      const int64_t k = first_entry<F>(begin, group, thread);
      const Pack<T, F::kPack> grad = load_pack<F::kPack>(static_cast<const T*>(block.tensor.grad) + k, block.end - k);
      SFT_UNROLL
      for (int i = 0; i < F::kPack; ++i) found |= nonfinite(grad.x[i]);
    }
  }
  return found;
}

template <class F>
struct AdamWPack {
  template <class T>
  using Of = Pack<T, F::kPack>;
  Of<typename F::Value> grad, value;
  Of<typename F::Moment> exp_avg, exp_avg_sq;
  Of<int16_t> correction;  // where the format has one
};

template <class F>
struct AdamWPacks {
  AdamWPack<F> group[F::kGroups];
};

template <class F>
SFT_HD AdamWPacks<F> load_state(const AdamWBlock& block, int64_t begin, int thread) {
  using T = typename F::Value;
  using M = typename F::Moment;
  constexpr int N = F::kPack;
  const AdamWTensor& t = block.tensor;
  AdamWPacks<F> held;
  SFT_UNROLL
  for (int group = 0; group < F::kGroups; ++group) {
    const int64_t k = first_entry<F>(begin, group, thread), left = block.end - k;
    AdamWPack<F>& pack = held.group[group];
    pack.grad = load_pack<N>(static_cast<const T*>(t.grad) + k, left);
    pack.value = load_pack<N>(static_cast<const T*>(t.values) + k, left);
    pack.exp_avg = load_pack<N>(static_cast<const M*>(t.exp_avg) + k, left);
    pack.exp_avg_sq = load_pack<N>(static_cast<const M*>(t.exp_avg_sq) + k, left);
    if constexpr (F::kRounding == kCorrected) pack.correction = load_pack<N>(static_cast<const int16_t*>(t.storage.correction) + k, left);
  }
  return held;
}

// `value` is what values holds after rounding, so that the weight shows it bit for bit.
template <class T, int N>
SFT_HD void write_through(const AdamWBlock& block, int64_t k, const Pack<T, N>& value) {
  const int64_t left = block.end - k;
  const Layout& layout = block.tensor.layout;
  switch (block.tensor.weight_dtype) {
    case kFloat32: return scatter_pack(static_cast<float*>(block.tensor.weight), layout, k, left, convert_pack<float>(value));
    case kFloat64: return scatter_pack(static_cast<double*>(block.tensor.weight), layout, k, left, convert_pack<double>(value));
    case kBFloat16: return scatter_pack(static_cast<BFloat16*>(block.tensor.weight), layout, k, left, convert_pack<BFloat16>(value));
    case kFloat16: return scatter_pack(static_cast<Float16*>(block.tensor.weight), layout, k, left, convert_pack<Float16>(value));
  }
}

// What entry `entry` of a stream becomes in memory.
template <class F, class T, class Wide>
SFT_HD T narrowed(Wide x, RandomKey key, int64_t entry) {
  if constexpr (F::kRounding == kByChance) return round_by_chance(x, random_word(key, static_cast<uint32_t>(entry)), Tag<T>());
  else return convert(x, Tag<T>());
}

template <class F>
SFT_HD typename F::Wide read_value(const AdamWPack<F>& pack, int i) {
  if constexpr (F::kRounding == kCorrected) return join(pack.value.x[i], pack.correction.x[i]);
  else return convert(pack.value.x[i], Tag<typename F::Wide>());
}

// entry: the number of entry i of the pack.
template <class F>
SFT_HD void write_value(AdamWPack<F>& pack, int i, typename F::Wide p, RandomKey key, int64_t entry) {
  if constexpr (F::kRounding == kCorrected) {
    const SplitFloat both = split(p);
    pack.value.x[i] = both.high;
    pack.correction.x[i] = both.low;
  } else {
    pack.value.x[i] = narrowed<F, typename F::Value>(p, key, entry);
  }
}

// How entries are updated: where nothing differs, all alike. `of_pack` gives what a pack needs that begins with entry k, of which `left`
// remain; `step_entry` steps entry `i` of it.
template <class F>
struct PlainUpdate {
  const AdamWConstants<typename F::Wide>* constants;
};

template <class F>
SFT_HD PlainUpdate<F> of_pack(const PlainUpdate<F>& update, int64_t, int64_t) {
  return update;
}

template <class F, class Wide>
SFT_HD void step_entry(const PlainUpdate<F>& update, int, Wide grad, Wide& value, Wide& exp_avg, Wide& exp_avg_sq) {
  adamw_update(*update.constants, update.constants->from_exp_avg, grad, value, exp_avg, exp_avg_sq);
}

// k: the first entry of the pack. Whatever of its number is above 32 bits is the same for the others.
template <class F, class Update>
SFT_HD void update_pack(const Update& update, RandomKey random, int64_t k, AdamWPack<F>& pack) {
  using Wide = typename F::Wide;
  using M = typename F::Moment;
  const uint32_t high = static_cast<uint32_t>(k >> 32);
  const RandomKey of_value = stream_key(random, high, 0);
  const RandomKey of_exp_avg = stream_key(random, high, 1), of_exp_avg_sq = stream_key(random, high, 2);
  SFT_UNROLL
  for (int i = 0; i < F::kPack; ++i) {
    Wide p = read_value(pack, i), m = convert(pack.exp_avg.x[i], Tag<Wide>()), v = convert(pack.exp_avg_sq.x[i], Tag<Wide>());
    step_entry(update, i, convert(pack.grad.x[i], Tag<Wide>()), p, m, v);
    write_value(pack, i, p, of_value, k + i);
    pack.exp_avg.x[i] = narrowed<F, M>(m, of_exp_avg, k + i);
    pack.exp_avg_sq.x[i] = narrowed<F, M>(v, of_exp_avg_sq, k + i);
  }
}

template <class F>
SFT_HD void store_pack_of_state(const AdamWTensor& t, int64_t k, int64_t left, const AdamWPack<F>& pack) {
  using T = typename F::Value;
  using M = typename F::Moment;
  store_pack(static_cast<T*>(t.values) + k, pack.value, left);
  store_pack(static_cast<M*>(t.exp_avg) + k, pack.exp_avg, left);
  store_pack(static_cast<M*>(t.exp_avg_sq) + k, pack.exp_avg_sq, left);
  if constexpr (F::kRounding == kCorrected) store_pack(t.storage.correction + k, pack.correction, left);
}

template <class F>
SFT_HD void write_packs_through(const AdamWBlock& block, int64_t begin, int thread, const AdamWPacks<F>& held) {
  SFT_UNROLL
  for (int group = 0; block.tensor.weight && group < F::kGroups; ++group) {
    const int64_t k = first_entry<F>(begin, group, thread);
    if (k < block.end) write_through(block, k, held.group[group].value);
  }
}

template <class F, class Update>
SFT_HD void store_state(const AdamWBlock& block, int64_t begin, int thread, const Update& update, RandomKey random, AdamWPacks<F>& held) {
  SFT_UNROLL
  for (int group = 0; group < F::kGroups; ++group) {
    const int64_t k = first_entry<F>(begin, group, thread), left = block.end - k;
    if (left <= 0) continue;
    update_pack<F>(of_pack(update, k, left), random, k, held.group[group]);
    store_pack_of_state(block.tensor, k, left, held.group[group]);
  }
  write_packs_through(block, begin, thread, held);
}

template <class F, class Update>
SFT_HD void update_chunk(const AdamWBlock& block, int thread, const Update& update, RandomKey random) {
  for (int64_t begin = block.begin; begin < block.end; begin += F::kPass) {
    AdamWPacks<F> held = load_state<F>(block, begin, thread);
    store_state<F>(block, begin, thread, update, random, held);
  }
}

// The words by which the step to come rounds by chance.
SFT_HD RandomKey random_of(const AdamWTensor& t) {
  return random_key(t.storage.seed, static_cast<uint64_t>(load(t.step)) + 1);
}

SFT_HD bool found_nonfinite(const StepFlags& flags) { return flags.found_inf && *flags.found_inf != 0; }

// Of the step to come: `step` itself advances in a launch of its own, when no block reads it any more.
template <class Wide>
SFT_HD AdamWConstants<Wide> constants_of(const AdamWTensor& t, const StepFlags& flags) {
  const double inv_scale = flags.grad_scale ? 1.0 / static_cast<double>(*flags.grad_scale) : 1.0;
  const double step = static_cast<double>(load(t.step)) + 1.0, lr = t.lr_at ? static_cast<double>(load(t.lr_at)) : t.lr;
  return adamw_constants<Wide>(step, lr, t.beta1, t.beta2, t.eps, t.weight_decay, inv_scale, flags.maximize);
}

constexpr int kStepTensors = 1024;

struct StepTable {
  int32_t tensors;
  float* step[kStepTensors];
};

SFT_HD void advance_step(const StepTable& table, const StepFlags& flags, int64_t i) {
  if (i < table.tensors && !found_nonfinite(flags)) store(table.step[i], load(table.step[i]) + 1.0f);
}

static inline AdamWTable empty_table(FormatCode format) {
  AdamWTable table{};
  table.format = format;
  table.streams = streams_of(format);
  return table;
}

// One launch each, with tensors of one format. A tensor without elements has none.
static inline std::vector<AdamWTable> adamw_tables(const std::vector<AdamWTensor>& tensors) {
  std::vector<AdamWTable> tables;
  for (const AdamWTensor& t : tensors) {
    if (!t.count) continue;
    const FormatCode format = format_of(t);
    const int64_t chunk = adamw_chunk(format);
    const auto open = std::find_if(tables.rbegin(), tables.rend(), [&](const AdamWTable& table) { return same(table.format, format); });
    if (open != tables.rend() && add(*open, t, chunk)) continue;
    tables.push_back(empty_table(format));
    if (!add(tables.back(), t, chunk)) throw std::invalid_argument("masked_adamw_cuda_: count is too large for one launch");
  }
  return tables;
}

static inline uint32_t blocks_of(const AdamWTable& table) { return table.first_chunk[table.tensors]; }

static inline std::vector<StepTable> step_tables(const std::vector<AdamWTensor>& tensors) {
  std::vector<StepTable> tables;
  for (const AdamWTensor& t : tensors) {
    if (tables.empty() || tables.back().tensors == kStepTensors) tables.emplace_back();
    tables.back().step[tables.back().tensors++] = t.step;
  }
  return tables;
}

}  // namespace sparse_ft
