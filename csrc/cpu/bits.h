// Flags of the signs of elements, packed one bit each, and elements let through by their bit. Flags are made and used as bytes, which
// vectorises; eight of them are packed into a byte, or spread from it, by one multiplication. AVX2 goes from a vector of floats to its
// eight bits, and back, in one instruction or two.
#pragma once

#include "move.h"
#include "wide.h"

namespace sparse_ft {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bit k of a byte is the flag in byte k of eight");

// Where ReLU lets a gradient through: above zero, or NaN. 16-bit floats are compared as integers: the sign bit makes the negative
// ones large, and beyond their infinity are NaN.
constexpr bool passes(float x) { return !(x <= 0); }
constexpr bool passes(double x) { return !(x <= 0); }
constexpr bool passes16(uint16_t bits, uint16_t minus_infinity) { return static_cast<uint16_t>(bits - 1) < 0x7fff || bits > minus_infinity; }
constexpr bool passes(BFloat16 x) { return passes16(x.bits, 0xff80); }
constexpr bool passes(Float16 x) { return passes16(x.bits, 0xfc00); }

// What ReLU makes zero; minus zero and NaN stay as they are.
constexpr bool negative(float x) { return x < 0; }
constexpr bool negative(double x) { return x < 0; }
constexpr bool negative16(uint16_t bits, uint16_t minus_infinity) { return static_cast<uint16_t>(bits - 0x8001) < minus_infinity - 0x8000; }
constexpr bool negative(BFloat16 x) { return negative16(x.bits, 0xff80); }
constexpr bool negative(Float16 x) { return negative16(x.bits, 0xfc00); }

template <class Stored>
void relu_run(const Stored* input, Stored* relu, int64_t count) {
  for (int64_t i = 0; i < count; ++i) relu[i] = negative(input[i]) ? Stored{} : input[i];
}

template <class Stored>
void flags_run(const Stored* __restrict input, uint8_t* __restrict flags, int64_t count) {
  for (int64_t i = 0; i < count; ++i) flags[i] = passes(input[i]);
}

inline void pack_run(const uint8_t* flags, uint8_t* __restrict bits, int64_t bytes) {
  for (int64_t b = 0; b < bytes; ++b) {
    uint64_t eight;
    memcpy(&eight, flags + 8 * b, 8);
    bits[b] = static_cast<uint8_t>(eight * 0x0102040810204080u >> 56);
  }
}

inline void spread_run(const uint8_t* __restrict bits, uint8_t* flags, int64_t bytes) {
  for (int64_t b = 0; b < bytes; ++b) {
    const uint64_t eight = bits[b] * 0x0101010101010101u & 0x8040201008040201u;
    memcpy(flags + 8 * b, &eight, 8);
  }
}

template <class T>
void scale_run(const T* __restrict grad, T scale, T* __restrict scaled, int64_t count) {
  for (int64_t i = 0; i < count; ++i) scaled[i] = grad[i] * scale;
}

// Zero in the bits of the element, so that a gradient that is not finite goes too.
template <class Bits>
void mask_run(const Bits* from, const uint8_t* __restrict flags, Bits* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Bits>(from[i] & -static_cast<Bits>(flags[i] != 0));
}

template <class Stored>
void where_piece(const Stored* grad, const uint8_t* flags, Wide<Stored> scale, Stored* output, int64_t count) {
  using Bits = Integer<Stored>;
  const Stored* from = grad;
  if (scale != 1) {
    Widened<Stored> wide, scaled;
    Wide<Stored>* product = scaled.target(output);
    scale_run(wide.load(grad, count), scale, product, count);
    scaled.finish(output, count);
    from = output;
  }
  mask_run(reinterpret_cast<const Bits*>(from), flags, reinterpret_cast<Bits*>(output), count);
}

// bits: [ceil(count / 8)], zero past the end. relu: where ReLU of the input goes, the input itself among others; null for nowhere.
template <class Stored>
void bits_piece(const Stored* input, uint8_t* bits, Stored* relu, int64_t count) {
  uint8_t flags[kPiece];
  const int64_t bytes = (count + 7) / 8;
  memset(flags + 8 * (bytes - 1), 0, 8);
  flags_run(input, flags, count);
  pack_run(flags, bits, bytes);
  if (relu) relu_run(input, relu, count);
}

template <class Stored>
void let_through(const Stored* grad, const uint8_t* bits, Wide<Stored> scale, Stored* output, int64_t count) {
  uint8_t flags[kPiece];
  spread_run(bits, flags, (count + 7) / 8);
  where_piece(grad, flags, scale, output, count);
}

#if defined(__AVX2__)
inline void bits_piece(const float* input, uint8_t* bits, float* relu, int64_t count) {
  const __m256 zero = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 x = _mm256_loadu_ps(input + i);
    bits[i / 8] = static_cast<uint8_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, zero, _CMP_NLE_UQ)));
    if (relu) _mm256_storeu_ps(relu + i, _mm256_max_ps(zero, x));  // of two zeros, or with NaN, the second
  }
  if (i < count) bits_piece<float>(input + i, bits + i / 8, relu ? relu + i : nullptr, count - i);
}

inline void let_through(const float* grad, const uint8_t* bits, float scale, float* output, int64_t count) {
  const __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256 by = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i flags = _mm256_and_si256(_mm256_set1_epi32(bits[i / 8]), lane_bits);
    const __m256 passing = _mm256_castsi256_ps(_mm256_cmpeq_epi32(flags, lane_bits));
    _mm256_storeu_ps(output + i, _mm256_and_ps(passing, _mm256_mul_ps(_mm256_loadu_ps(grad + i), by)));
  }
  if (i < count) let_through<float>(grad + i, bits + i / 8, scale, output + i, count - i);
}
#endif

}  // namespace
}  // namespace sparse_ft
