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
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

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
