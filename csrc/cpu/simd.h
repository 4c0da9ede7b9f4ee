// Vectors as wide as the instruction set that this file is compiled for, through the vector extensions of GCC and Clang.
#pragma once

#include <cstdint>

namespace sparse_ft {

#if defined(SFT_VECTOR_BYTES)  // tests compile other widths than the machine's
constexpr int kVectorBytes = SFT_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Simd;
template <>
struct Simd<float> {
  typedef float type __attribute__((vector_size(kVectorBytes), may_alias));
};
template <>
struct Simd<double> {
  typedef double type __attribute__((vector_size(kVectorBytes), may_alias));
};

template <class T>
using Vec = typename Simd<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
static inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
static inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

// interleave_low(a, b) = a0 b0 a1 b1 … of the low halves, interleave_high of the high halves.
#define SFT_LANES2(f, i) f(i), f(i + 1)
#define SFT_LANES4(f, i) SFT_LANES2(f, i), SFT_LANES2(f, i + 2)
#define SFT_LANES8(f, i) SFT_LANES4(f, i), SFT_LANES4(f, i + 4)
#define SFT_LANES16(f, i) SFT_LANES8(f, i), SFT_LANES8(f, i + 8)
#define SFT_LOW(i) ((i) / 2 + (i) % 2 * kCount)
#define SFT_HIGH(i) ((i) / 2 + kCount / 2 + (i) % 2 * kCount)

template <int Count>
struct Interleave;
#define SFT_INTERLEAVE(count)                                                                                \
  template <>                                                                                                \
  struct Interleave<count> {                                                                                 \
    static constexpr int kCount = count;                                                                     \
    template <class V>                                                                                       \
    static inline V low(V a, V b) { return __builtin_shufflevector(a, b, SFT_LANES##count(SFT_LOW, 0)); }    \
    template <class V>                                                                                       \
    static inline V high(V a, V b) { return __builtin_shufflevector(a, b, SFT_LANES##count(SFT_HIGH, 0)); }  \
  };
SFT_INTERLEAVE(2)
SFT_INTERLEAVE(4)
SFT_INTERLEAVE(8)
SFT_INTERLEAVE(16)

// Lanes x lanes elements, in place: rows become columns.
template <class T>
static inline void transpose(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
#pragma GCC unroll 4
  for (int step = 1; step < lanes; step *= 2) {
    Vec<T> next[lanes];
#pragma GCC unroll 8
    for (int i = 0; i < lanes / 2; ++i) {
      next[2 * i] = Interleave<lanes>::low(rows[i], rows[i + lanes / 2]);
      next[2 * i + 1] = Interleave<lanes>::high(rows[i], rows[i + lanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) rows[i] = next[i];
  }
}

// Lane i of the result is the sum over the lanes of rows[i]. Overwrites its argument.
template <class T>
static inline Vec<T> sum_lanes(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>;
#pragma GCC unroll 4
  for (int half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i)
      rows[i] = Interleave<lanes>::low(rows[i], rows[i + half]) + Interleave<lanes>::high(rows[i], rows[i + half]);
  return rows[0];
}

}  // namespace sparse_ft
