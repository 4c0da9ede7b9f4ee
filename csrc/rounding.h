// Numbers of float32 kept in 16 bits without losing what small updates add up to: rounded up or down by chance, right in expectation, or
// as bfloat16 and a correction that together are the number. Shared by host and device.
#pragma once

#include "dtype.h"

namespace sparse_ft {

// One 32-bit word for each entry and stream of a step of a tensor, made from their numbers alone: neither the order nor the number of
// threads matters. The mixing is C. Wellons' hash prospector's lowbias32, twice; keys are mixed by splitmix64's finaliser.
struct RandomKey {
  uint32_t first, second;
};

SFT_HD uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

SFT_HD uint32_t mix32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

SFT_HD RandomKey random_key(uint64_t seed, uint64_t step) {
  const uint64_t key = mix64(mix64(seed + 0x9e3779b97f4a7c15u) + step);
  return RandomKey{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

// Of the 2^32 entries that begin at entry `high` * 2^32, for one stream: 0 values, 1 exp_avg, 2 exp_avg_sq.
SFT_HD RandomKey stream_key(RandomKey key, uint32_t high, int stream) {
  return RandomKey{key.first, key.second + high * 0x85ebca6bu + static_cast<uint32_t>(stream) * 0x9e3779b9u};
}

// In two parts, as the first is the same for every stream.
SFT_HD uint32_t mixed_entry(RandomKey key, uint32_t entry) { return mix32(entry ^ key.first); }
SFT_HD uint32_t word_of(RandomKey key, uint32_t mixed) { return mix32(mixed + key.second); }
SFT_HD uint32_t random_word(RandomKey key, uint32_t entry) { return word_of(key, mixed_entry(key, entry)); }

SFT_HD uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
#ifdef __CUDA_ARCH__
  return condition ? yes : no;
#else
  return no ^ ((yes ^ no) & (0u - static_cast<uint32_t>(condition)));  // GCC 12 vectorises no ?: of what is stored in 16 bits
#endif
}

// Up with the probability of the part that is dropped, in units of the last place. Numbers beyond the largest finite one, inf and NaN go to
// the nearest.
SFT_HD BFloat16 round_by_chance(float x, uint32_t word, Tag<BFloat16>) {
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffffu;
  const uint32_t half_a_unit = 0x7fffu + ((bits >> 16) & 1u);
  const uint32_t rounded = bits + choose(magnitude < 0x7f7f0000u, word >> 16, half_a_unit);
  return BFloat16{static_cast<uint16_t>(choose(magnitude > 0x7f800000u, bits | 0x400000u, rounded) >> 16)};
}

// Below 2^-14 its numbers are multiples of 2^-24; a chance is a multiple of 2^-24 there.
SFT_HD Float16 round_by_chance(float x, uint32_t word, Tag<Float16>) {
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + (word >> 19)) >> 13;
  const bool small = magnitude < 0x38800000u;
  const float units = bits_float(choose(small, magnitude, 0u)) * 16777216.0f;
  const int32_t whole = static_cast<int32_t>(units);
  const float dropped = (units - static_cast<float>(whole)) * 16777216.0f;
  const bool up = static_cast<float>(static_cast<int32_t>(~word >> 8)) + 1.0f <= dropped;
  const uint32_t nan = 0x7e00u | (magnitude >> 13 & 0x1ffu), beyond = choose(magnitude >= 0x477ff000u, 0x7c00u, 0x7bffu);
  uint32_t half = choose(small, static_cast<uint32_t>(whole) + static_cast<uint32_t>(up), normal);
  half = choose(magnitude >= 0x477fe000u, choose(magnitude > 0x7f800000u, nan, beyond), half);
  return Float16{static_cast<uint16_t>(((bits & 0x80000000u) | half << 16) >> 16)};
}

// A float32 as the nearest bfloat16 (halves away from zero) and what is left of its bits: `join` gives back every finite number and inf.
// The bfloat16 part of finite numbers from 0x1.ffp+127 on is inf; NaN stays NaN.
struct SplitFloat {
  BFloat16 high;
  int16_t low;
};

SFT_HD SplitFloat split(float x) {
  const uint32_t bits = float_bits(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t high = nan ? bits >> 16 | 0x40u : (bits + 0x8000u) >> 16;
  return SplitFloat{BFloat16{static_cast<uint16_t>(high)}, static_cast<int16_t>(nan ? 0u : bits & 0xffffu)};
}

SFT_HD float join(BFloat16 high, int16_t low) {
  return bits_float((static_cast<uint32_t>(high.bits) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}

}  // namespace sparse_ft
