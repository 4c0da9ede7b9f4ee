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

// A vector is made of 16-byte quarters (or fewer of them): moving elements within them is cheaper than across.
// Of two vectors a and b, `low` and `high` interleave the first or second half of every quarter: a0 b0 a1 b1 …; low_quarters and
// high_quarters interleave whole quarters of the first or second half of the vector. `join` puts a in front of b.
#define SFT_LANES2(f, i) f(i), f(i + 1)
#define SFT_LANES4(f, i) SFT_LANES2(f, i), SFT_LANES2(f, i + 2)
#define SFT_LANES8(f, i) SFT_LANES4(f, i), SFT_LANES4(f, i + 4)
#define SFT_LANES16(f, i) SFT_LANES8(f, i), SFT_LANES8(f, i + 8)
#define SFT_SAME(i) (i)
#define SFT_LOW(i) ((i) / kQuarter * kQuarter + (i) % kQuarter / 2 + (i) % 2 * kCount)
#define SFT_HIGH(i) (SFT_LOW(i) + kQuarter / 2)
#define SFT_LOW_QUARTERS(i) ((i) / kQuarter / 2 * kQuarter + (i) % kQuarter + (i) / kQuarter % 2 * kCount)
#define SFT_HIGH_QUARTERS(i) (SFT_LOW_QUARTERS(i) + kCount / 2)

template <int Count, int Quarter>
struct Lanes;
#define SFT_LANES(count, quarter)                                                                                                 \
  template <>                                                                                                                     \
  struct Lanes<count, quarter> {                                                                                                  \
    static constexpr int kCount = count, kQuarter = quarter;                                                                      \
    template <class V>                                                                                                            \
    static inline V low(V a, V b) { return __builtin_shufflevector(a, b, SFT_LANES##count(SFT_LOW, 0)); }                         \
    template <class V>                                                                                                            \
    static inline V high(V a, V b) { return __builtin_shufflevector(a, b, SFT_LANES##count(SFT_HIGH, 0)); }                       \
    template <class V>                                                                                                            \
    static inline V low_quarters(V a, V b) { return __builtin_shufflevector(a, b, SFT_LANES##count(SFT_LOW_QUARTERS, 0)); }       \
    template <class V>                                                                                                            \
    static inline V high_quarters(V a, V b) { return __builtin_shufflevector(a, b, SFT_LANES##count(SFT_HIGH_QUARTERS, 0)); }     \
    template <class V>                                                                                                            \
    static inline auto join(V a, V b) { return __builtin_shufflevector(a, b, SFT_LANES##count(SFT_SAME, 0)); }                    \
  };
SFT_LANES(2, 2)
SFT_LANES(4, 2)
SFT_LANES(4, 4)
SFT_LANES(8, 2)
SFT_LANES(8, 4)
SFT_LANES(16, 4)

template <class T>
constexpr int kQuarterLanes = 16 / static_cast<int>(sizeof(T));

// Count / kQuarterLanes quarters side by side, each from `kQuarterLanes` rows further down.
template <int Count, class T>
static inline auto load_down(const T* from, int64_t stride) {
  if constexpr (Count == kQuarterLanes<T>) {
    typedef T Quarter __attribute__((vector_size(16), may_alias));
    Quarter quarter;
    __builtin_memcpy(&quarter, from, sizeof quarter);
    return quarter;
  } else {
    const auto lower = load_down<Count / 2>(from, stride), upper = load_down<Count / 2>(from + Count / 2 * stride, stride);
    return Lanes<Count, kQuarterLanes<T>>::join(lower, upper);
  }
}

// columns[c] = source[0 … lanes - 1, c], for lanes columns.
template <class T>
static inline void load_transposed(const T* source, int64_t stride, Vec<T> (&columns)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>, quarter = kQuarterLanes<T>;
  using Shuffle = Lanes<lanes, quarter>;
#pragma GCC unroll 4
  for (int c = 0; c < lanes; c += quarter) {
    Vec<T> rows[quarter], next[quarter];
#pragma GCC unroll 4
    for (int i = 0; i < quarter; ++i) rows[i] = load_down<lanes>(source + i * stride + c, stride);
#pragma GCC unroll 2
    for (int step = 1; step < quarter; step *= 2) {
#pragma GCC unroll 2
      for (int i = 0; i < quarter / 2; ++i) {
        next[2 * i] = Shuffle::low(rows[i], rows[i + quarter / 2]);
        next[2 * i + 1] = Shuffle::high(rows[i], rows[i + quarter / 2]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < quarter; ++i) rows[i] = next[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < quarter; ++i) columns[c + i] = rows[i];
  }
}

// Lane i of the result is the sum over the lanes of rows[i]. Overwrites its argument.
template <class T>
static inline Vec<T> sum_lanes(Vec<T> (&rows)[kLanes<T>]) {
  constexpr int lanes = kLanes<T>, quarter = kQuarterLanes<T>;
  using Shuffle = Lanes<lanes, quarter>;
#pragma GCC unroll 2
  for (int half = quarter / 2; half > 0; half /= 2)
#pragma GCC unroll 4
    for (int q = 0; q < lanes; q += quarter)
#pragma GCC unroll 2
      for (int i = q; i < q + half; ++i) rows[i] = Shuffle::low(rows[i], rows[i + half]) + Shuffle::high(rows[i], rows[i + half]);
#pragma GCC unroll 2
  for (int half = lanes / 2; half >= quarter; half /= 2)
#pragma GCC unroll 2
    for (int q = 0; q < half; q += quarter)
      rows[q] = Shuffle::low_quarters(rows[q], rows[q + half]) + Shuffle::high_quarters(rows[q], rows[q + half]);
  return rows[0];
}

}  // namespace sparse_ft
