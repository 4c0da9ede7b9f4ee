// How masked_adamw_ keeps values and moments in fewer bits than it computes in: read as float32 into a buffer, and written back.
#pragma once

#include "../quantize.h"
#include "../rounding.h"
#include "move.h"
#include "ops.h"

namespace sparse_ft {
namespace {

constexpr MomentMaps kMaps = moment_maps();
static_assert(kPiece % kQuantBlock == 0, "a piece begins and ends with a block, or with its tensor");

struct WideState {  // of one piece
  float value[kPiece], grad[kPiece], moments[2][kPiece];
  float *exp_avg, *exp_avg_sq;  // in `moments`, or in place where they are float32: what is ahead of them can then be asked for
  uint32_t mixed[kPiece];  // the part of the entries' random words that is the same for each of these
};

inline void read_plain(float* to, const void* from, DType dtype, int64_t k, int64_t count) {
  convert_any(to, kFloat32, static_cast<const char*>(from) + k * size_of(dtype), dtype, count);
}

inline void write_plain(void* to, DType dtype, const float* from, int64_t k, int64_t count) {
  convert_any(static_cast<char*>(to) + k * size_of(dtype), dtype, from, kFloat32, count);
}

// Loops that store `.bits`: GCC does not vectorise copies of a struct.
template <class Stored>
void round_run(Stored* __restrict to, const float* __restrict from, const uint32_t* __restrict mixed, RandomKey key, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i].bits = round_by_chance(from[i], word_of(key, mixed[i]), Tag<Stored>()).bits;
}

inline void mix_run(uint32_t* __restrict mixed, RandomKey key, uint32_t entry, int64_t count) {
  for (int64_t i = 0; i < count; ++i) mixed[i] = mixed_entry(key, entry + static_cast<uint32_t>(i));
}

// A piece begins at a multiple of its size: the upper half of its entries' numbers is the same for all.
template <class Stored>
void write_by_chance(const AdamWTensor& t, RandomKey key, int64_t k, int64_t count, WideState& wide) {
  mix_run(wide.mixed, key, static_cast<uint32_t>(k), count);
  const auto write = [&](void* to, const float* from, int stream) {
    const RandomKey of_stream = stream_key(key, static_cast<uint32_t>(k >> 32), stream);
    round_run(static_cast<Stored*>(to) + k, from, wide.mixed, of_stream, count);
  };
  write(t.values, wide.value, 0);
  if (t.storage.exp_avg_absmax) return;
  write(t.exp_avg, wide.exp_avg, 1);
  write(t.exp_avg_sq, wide.exp_avg_sq, 2);
}

inline void join_run(float* __restrict to, const BFloat16* __restrict high, const int16_t* __restrict low, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = join(high[i], low[i]);
}

inline void split_run(BFloat16* __restrict high, int16_t* __restrict low, const float* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const SplitFloat both = split(from[i]);
    high[i].bits = both.high.bits;
    low[i] = both.low;
  }
}

// absmax: of the blocks that begin with the run.
inline void dequantize_run(float* __restrict to, const uint8_t* __restrict codes, const float* absmax, const DynamicMap& map,
                           int64_t count) {
  for (int64_t begin = 0; begin < count; begin += kQuantBlock, ++absmax)
    for (int64_t i = begin; i < smaller(begin + kQuantBlock, count); ++i) to[i] = dequantize(map, codes[i], *absmax);
}

inline void quantize_block(uint8_t* __restrict codes, float* absmax, const DynamicMap& map, const float* __restrict from, int64_t count) {
  uint32_t highest = 0;
  for (int64_t i = 0; i < count; ++i) highest = higher(highest, magnitude_bits(from[i]));
  *absmax = absmax_of(highest);
  const float divisor = divisor_of(*absmax);
  for (int64_t i = 0; i < count; ++i) codes[i] = nearest_code(map, from[i] / divisor);
}

inline void quantize_run(uint8_t* codes, float* absmax, const DynamicMap& map, const float* from, int64_t count) {
  for (int64_t k = 0; k < count; k += kQuantBlock, ++absmax)
    quantize_block(codes + k, absmax, map, from + k, smaller(kQuantBlock, count - k));
}

inline void read_moments(const AdamWTensor& t, int64_t k, int64_t count, WideState& wide) {
  wide.exp_avg = wide.moments[0], wide.exp_avg_sq = wide.moments[1];
  if (t.storage.exp_avg_absmax) {
    const int64_t block = k / kQuantBlock;
    dequantize_run(wide.exp_avg, static_cast<uint8_t*>(t.exp_avg) + k, t.storage.exp_avg_absmax + block, kMaps.exp_avg, count);
    dequantize_run(wide.exp_avg_sq, static_cast<uint8_t*>(t.exp_avg_sq) + k, t.storage.exp_avg_sq_absmax + block, kMaps.exp_avg_sq, count);
  } else if (t.storage.correction) {
    wide.exp_avg = static_cast<float*>(t.exp_avg) + k, wide.exp_avg_sq = static_cast<float*>(t.exp_avg_sq) + k;
  } else {
    read_plain(wide.exp_avg, t.exp_avg, t.dtype, k, count);
    read_plain(wide.exp_avg_sq, t.exp_avg_sq, t.dtype, k, count);
  }
}

inline void read_state(const AdamWTensor& t, int64_t k, int64_t count, WideState& wide) {
  if (t.storage.correction) join_run(wide.value, static_cast<const BFloat16*>(t.values) + k, t.storage.correction + k, count);
  else read_plain(wide.value, t.values, t.dtype, k, count);
  read_moments(t, k, count, wide);
}

inline void write_quantized(const AdamWTensor& t, int64_t k, int64_t count, const WideState& wide) {
  const int64_t block = k / kQuantBlock;
  quantize_run(static_cast<uint8_t*>(t.exp_avg) + k, t.storage.exp_avg_absmax + block, kMaps.exp_avg, wide.exp_avg, count);
  quantize_run(static_cast<uint8_t*>(t.exp_avg_sq) + k, t.storage.exp_avg_sq_absmax + block, kMaps.exp_avg_sq, wide.exp_avg_sq, count);
}

// key: of the words to round with, where that is by chance.
inline void write_state(const AdamWTensor& t, RandomKey key, int64_t k, int64_t count, WideState& wide) {
  if (t.storage.exp_avg_absmax) write_quantized(t, k, count, wide);
  if (t.storage.correction) return split_run(static_cast<BFloat16*>(t.values) + k, t.storage.correction + k, wide.value, count);
  if (t.storage.by_chance && t.dtype == kBFloat16) return write_by_chance<BFloat16>(t, key, k, count, wide);
  if (t.storage.by_chance) return write_by_chance<Float16>(t, key, k, count, wide);
  write_plain(t.values, t.dtype, wide.value, k, count);
  if (t.storage.exp_avg_absmax) return;
  write_plain(t.exp_avg, t.dtype, wide.exp_avg, k, count);
  write_plain(t.exp_avg_sq, t.dtype, wide.exp_avg_sq, k, count);
}

}  // namespace
}  // namespace sparse_ft
