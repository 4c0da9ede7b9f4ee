// How masked_adamw_ keeps values and moments in fewer bits than it computes in: read as float32 into a buffer, and written back.
#pragma once

#include "../rounding.h"
#include "move.h"
#include "ops.h"

namespace sparse_ft {
namespace {

struct WideState {  // of one piece
  float value[kPiece], grad[kPiece], exp_avg[kPiece], exp_avg_sq[kPiece];
};

enum StateStream : int { kValueStream, kExpAvgStream, kExpAvgSqStream };

inline void read_plain(float* to, const void* from, DType dtype, int64_t k, int64_t count) {
  convert_any(to, kFloat32, static_cast<const char*>(from) + k * size_of(dtype), dtype, count);
}

inline void write_plain(void* to, DType dtype, const float* from, int64_t k, int64_t count) {
  convert_any(static_cast<char*>(to) + k * size_of(dtype), dtype, from, kFloat32, count);
}

// Loops that store `.bits`: GCC does not vectorise copies of a struct.
template <class Stored>
void round_run(Stored* __restrict to, const float* __restrict from, RandomKey key, uint32_t entry, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    to[i].bits = round_by_chance(from[i], random_word(key, entry + static_cast<uint32_t>(i)), Tag<Stored>()).bits;
}

// A piece begins at a multiple of its size: the upper half of its entries' numbers is the same for all.
inline void write_by_chance(void* to, DType dtype, const float* from, RandomKey key, StateStream stream, int64_t k, int64_t count) {
  const RandomKey of_stream = stream_key(key, static_cast<uint32_t>(k >> 32), stream);
  if (dtype == kBFloat16) round_run(static_cast<BFloat16*>(to) + k, from, of_stream, static_cast<uint32_t>(k), count);
  else round_run(static_cast<Float16*>(to) + k, from, of_stream, static_cast<uint32_t>(k), count);
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

inline void read_values(const AdamWTensor& t, int64_t k, int64_t count, WideState& wide) {
  if (t.storage.correction) join_run(wide.value, static_cast<const BFloat16*>(t.values) + k, t.storage.correction + k, count);
  else read_plain(wide.value, t.values, t.dtype, k, count);
}

inline void write_values(const AdamWTensor& t, RandomKey key, int64_t k, int64_t count, const WideState& wide) {
  if (t.storage.correction) split_run(static_cast<BFloat16*>(t.values) + k, t.storage.correction + k, wide.value, count);
  else if (t.storage.by_chance) write_by_chance(t.values, t.dtype, wide.value, key, kValueStream, k, count);
  else write_plain(t.values, t.dtype, wide.value, k, count);
}

inline void read_moments(const AdamWTensor& t, int64_t k, int64_t count, WideState& wide) {
  const DType dtype = t.storage.correction ? kFloat32 : t.dtype;
  read_plain(wide.exp_avg, t.exp_avg, dtype, k, count);
  read_plain(wide.exp_avg_sq, t.exp_avg_sq, dtype, k, count);
}

inline void write_moments(const AdamWTensor& t, RandomKey key, int64_t k, int64_t count, const WideState& wide) {
  if (t.storage.by_chance) {
    write_by_chance(t.exp_avg, t.dtype, wide.exp_avg, key, kExpAvgStream, k, count);
    write_by_chance(t.exp_avg_sq, t.dtype, wide.exp_avg_sq, key, kExpAvgSqStream, k, count);
  } else {
    const DType dtype = t.storage.correction ? kFloat32 : t.dtype;
    write_plain(t.exp_avg, dtype, wide.exp_avg, k, count);
    write_plain(t.exp_avg_sq, dtype, wide.exp_avg_sq, k, count);
  }
}

}  // namespace
}  // namespace sparse_ft
