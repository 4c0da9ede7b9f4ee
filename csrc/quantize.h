// Moments in 8 bits: each block of 128 entries has an absmax, and an entry is the code of what absmax is multiplied with, from a map whose
// numbers are the denser the smaller they are (Dettmers et al., 8-bit Optimizers via Block-wise Quantization, 2022). Shared by host and
// device.
#pragma once

#include "dtype.h"

namespace sparse_ft {

constexpr int kQuantBlock = 128;  // entries, as they lie in memory
constexpr int kCodes = 256;

struct DynamicMap {
  float of[kCodes];        // ascending, 0 and 1 among them
  float midpoint[kCodes];  // between a code and the next; the last has none, and unsigned only 0 itself has the code of 0
};

struct MomentMaps {
  DynamicMap exp_avg, exp_avg_sq;  // signed, unsigned
};

// The k-th decade below 1 has half as many numbers as the one above it: the middles of equal parts of [0.1, 1] of it. One division of whole
// numbers each, so that every compiler and PyTorch get the same bits.
static constexpr DynamicMap dynamic_map(bool is_signed) {
  DynamicMap map{};
  const int zero = is_signed ? kCodes / 2 - 1 : 0;
  int code = zero;
  double decade = 1e6;
  for (int n = is_signed ? 1 : 2; code + n < kCodes; n *= 2, decade /= 10)
    for (int j = 0; j < n; ++j) {
      map.of[++code] = static_cast<float>((2.0 * n + 9.0 * (2 * j + 1)) / (20.0 * n * decade));
      if (is_signed) map.of[2 * zero - code] = -map.of[code];
    }
  map.of[kCodes - 1] = 1.0f;
  for (int i = 0; i + 1 < kCodes; ++i) map.midpoint[i] = static_cast<float>((static_cast<double>(map.of[i]) + map.of[i + 1]) / 2);
  if (!is_signed) map.midpoint[0] = 0.0f;  // an exp_avg_sq that is not 0 does not become 0: its exp_avg would be divided by eps
  return map;
}

static constexpr MomentMaps moment_maps() { return MomentMaps{dynamic_map(true), dynamic_map(false)}; }

// The bits of |x|, whose order is that of the numbers; inf and NaN come last.
SFT_HD uint32_t magnitude_bits(float x) { return float_bits(x) & 0x7fffffffu; }

SFT_HD uint32_t higher(uint32_t a, uint32_t b) { return a > b ? a : b; }

// highest: of the magnitudes' bits. Every NaN becomes the same one.
SFT_HD float absmax_of(uint32_t highest) { return bits_float(highest < 0x7fc00000u ? highest : 0x7fc00000u); }

// What entries of the block are divided by.
SFT_HD float divisor_of(float absmax) { return absmax > 0.0f ? absmax : 1.0f; }

SFT_HD float dequantize(const DynamicMap& map, uint8_t code, float absmax) { return absmax * map.of[code]; }

// The nearest code to `ratio`, the lower one of two as near; some code for NaN.
SFT_HD uint8_t nearest_code(const DynamicMap& map, float ratio) {
  uint32_t code = 0;
#ifdef __CUDACC__
#pragma unroll
#endif
  for (uint32_t step = kCodes / 2; step; step /= 2) code += ratio <= map.midpoint[code + step - 1] ? 0u : step;
  return static_cast<uint8_t>(code);
}

}  // namespace sparse_ft
