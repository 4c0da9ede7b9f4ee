// Contiguous runs of one dtype into another. The plain loops vectorise; half precision takes the F16C instructions by name.
#pragma once

#include "../dtype.h"

namespace sparse_ft {

template <class To, class From>
static inline void convert_run(To* __restrict to, const From* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = convert(from[i], Tag<To>());
}

template <class T>
static inline void convert_run(T* __restrict to, const T* __restrict from, int64_t count) {
  memcpy(to, from, count * sizeof(T));
}

#if defined(__AVX2__)
// Eight floats as bfloat16 in the low halves of 32-bit lanes.
static inline __m256i round_bfloat16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, is_nan), 16);
}

static inline void convert_run(BFloat16* __restrict to, const float* __restrict from, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i packed = _mm256_packus_epi32(round_bfloat16(_mm256_loadu_ps(from + i)), round_bfloat16(_mm256_loadu_ps(from + i + 8)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm256_permute4x64_epi64(packed, 0xd8));
  }
  for (; i < count; ++i) to[i] = round_bfloat16(from[i]);
}
#endif

#if defined(__F16C__) && defined(__AVX__)
static inline void convert_run(float* __restrict to, const Float16* __restrict from, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  for (; i < count; ++i) to[i] = load_float16(from[i]);
}

static inline void convert_run(Float16* __restrict to, const float* __restrict from, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < count; ++i) to[i] = round_float16(from[i]);
}
#endif

}  // namespace sparse_ft
