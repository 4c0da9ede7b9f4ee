// What one thread of the masked_adamw_ launches does. Shared by host and device.
#pragma once

#include <vector>

#include "../adamw.h"
#include "adamw_table.h"
#include "pack.h"

namespace sparse_ft {

constexpr int kAdamWThreads = 256;

template <class T>
constexpr int kAdamWPack = 16 / static_cast<int>(sizeof(T));

// Packs a thread: with four streams and an index, ten 128-bit loads in flight. One where that would take too many registers.
template <class T>
constexpr int kGroups = sizeof(T) == 4 ? 2 : 1;

template <class T>
constexpr int64_t kPass = kAdamWThreads * kGroups<T> * kAdamWPack<T>;  // entries that a block holds at once

// A block begins with a search of the table and two powers in float64, about as long as a pass takes.
constexpr int kPasses = 4;

template <class T>
constexpr int64_t kAdamWChunk = kPasses * kPass<T>;

static inline int64_t adamw_chunk(DType dtype) {
  int64_t chunk = 0;
  with_dtype(dtype, [&](auto t) { chunk = kAdamWChunk<decltype(t)>; });
  return chunk;
}

// A thread's packs lie a block apart, so that neighbours read neighbouring memory. begin: of the pass.
template <class T>
SFT_HD int64_t first_entry(int64_t begin, int group, int thread) {
  return begin + (group * kAdamWThreads + thread) * kAdamWPack<T>;
}

// The tensor and the chunk of it that a block works on.
struct AdamWBlock {
  AdamWTensor tensor;
  int64_t begin, end;  // entries
};

template <class T>
SFT_HD AdamWBlock block_at(const AdamWTable& table, uint32_t block) {
  const int i = tensor_of(table, block);
  const AdamWTensor t = tensor_at(table, i);
  const int64_t begin = (block - table.first_chunk[i]) * kAdamWChunk<T>, end = begin + kAdamWChunk<T>;
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

template <class T>
SFT_HD bool any_nonfinite(const AdamWBlock& block, int thread) {
  bool found = false;
  for (int64_t begin = block.begin; begin < block.end; begin += kPass<T>) {
    SFT_UNROLL
    for (int group = 0; group < kGroups<T>; ++group) {
      const int64_t k = first_entry<T>(begin, group, thread);
      const Pack<T, kAdamWPack<T>> grad = load_pack<kAdamWPack<T>>(static_cast<const T*>(block.tensor.grad) + k, block.end - k);
      SFT_UNROLL
      for (int i = 0; i < kAdamWPack<T>; ++i) found |= nonfinite(grad.x[i]);
    }
  }
  return found;
}

template <class T>
struct AdamWPacks {
  Pack<T, kAdamWPack<T>> grad[kGroups<T>], value[kGroups<T>], exp_avg[kGroups<T>], exp_avg_sq[kGroups<T>];
};

template <class T>
SFT_HD AdamWPacks<T> load_state(const AdamWBlock& block, int64_t begin, int thread) {
  constexpr int N = kAdamWPack<T>;
  AdamWPacks<T> held;
  SFT_UNROLL
  for (int group = 0; group < kGroups<T>; ++group) {
    const int64_t k = first_entry<T>(begin, group, thread), left = block.end - k;
    held.grad[group] = load_pack<N>(static_cast<const T*>(block.tensor.grad) + k, left);
    held.value[group] = load_pack<N>(static_cast<const T*>(block.tensor.values) + k, left);
    held.exp_avg[group] = load_pack<N>(static_cast<const T*>(block.tensor.exp_avg) + k, left);
    held.exp_avg_sq[group] = load_pack<N>(static_cast<const T*>(block.tensor.exp_avg_sq) + k, left);
  }
  return held;
}

// `value` is what values holds after rounding, so that the weight shows it bit for bit.
template <class T>
SFT_HD void write_through(const AdamWBlock& block, int64_t k, const Pack<T, kAdamWPack<T>>& value) {
  const int64_t left = block.end - k;
  const Layout& layout = block.tensor.layout;
  switch (block.tensor.weight_dtype) {
    case kFloat32: return scatter_pack(static_cast<float*>(block.tensor.weight), layout, k, left, convert_pack<float>(value));
    case kFloat64: return scatter_pack(static_cast<double*>(block.tensor.weight), layout, k, left, convert_pack<double>(value));
    case kBFloat16: return scatter_pack(static_cast<BFloat16*>(block.tensor.weight), layout, k, left, convert_pack<BFloat16>(value));
    case kFloat16: return scatter_pack(static_cast<Float16*>(block.tensor.weight), layout, k, left, convert_pack<Float16>(value));
  }
}

template <class T, class Wide>
SFT_HD void update_pack(const AdamWConstants<Wide>& c, const Pack<T, kAdamWPack<T>>& grad, Pack<T, kAdamWPack<T>>& value,
                        Pack<T, kAdamWPack<T>>& exp_avg, Pack<T, kAdamWPack<T>>& exp_avg_sq) {
  SFT_UNROLL
  for (int i = 0; i < kAdamWPack<T>; ++i) {
    Wide p = convert(value.x[i], Tag<Wide>()), m = convert(exp_avg.x[i], Tag<Wide>()), v = convert(exp_avg_sq.x[i], Tag<Wide>());
    adamw_update(c, convert(grad.x[i], Tag<Wide>()), p, m, v);
    value.x[i] = convert(p, Tag<T>());
    exp_avg.x[i] = convert(m, Tag<T>());
    exp_avg_sq.x[i] = convert(v, Tag<T>());
  }
}

template <class T, class Wide>
SFT_HD void store_state(const AdamWBlock& block, int64_t begin, int thread, const AdamWConstants<Wide>& constants, AdamWPacks<T>& held) {
  SFT_UNROLL
  for (int group = 0; group < kGroups<T>; ++group) {
    const int64_t k = first_entry<T>(begin, group, thread), left = block.end - k;
    if (left <= 0) continue;
    update_pack(constants, held.grad[group], held.value[group], held.exp_avg[group], held.exp_avg_sq[group]);
    store_pack(static_cast<T*>(block.tensor.values) + k, held.value[group], left);
    store_pack(static_cast<T*>(block.tensor.exp_avg) + k, held.exp_avg[group], left);
    store_pack(static_cast<T*>(block.tensor.exp_avg_sq) + k, held.exp_avg_sq[group], left);
  }
  SFT_UNROLL
  for (int group = 0; block.tensor.weight && group < kGroups<T>; ++group) {
    const int64_t k = first_entry<T>(begin, group, thread);
    if (k < block.end) write_through(block, k, held.value[group]);
  }
}

template <class T, class Wide>
SFT_HD void update_chunk(const AdamWBlock& block, int thread, const AdamWConstants<Wide>& constants) {
  for (int64_t begin = block.begin; begin < block.end; begin += kPass<T>) {
    AdamWPacks<T> held = load_state<T>(block, begin, thread);
    store_state(block, begin, thread, constants, held);
  }
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

// One launch each. A tensor without elements has none.
static inline std::vector<AdamWTable> adamw_tables(const std::vector<AdamWTensor>& tensors) {
  std::vector<AdamWTable> tables;
  size_t open[4] = {0, 0, 0, 0};  // the table that takes the next tensor of a dtype, plus one
  for (const AdamWTensor& t : tensors) {
    const int64_t chunk = adamw_chunk(t.dtype);
    if (!t.count || (open[t.dtype] && add(tables[open[t.dtype] - 1], t, chunk))) continue;
    tables.emplace_back();  // of zeros
    tables.back().dtype = t.dtype;
    open[t.dtype] = tables.size();
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
