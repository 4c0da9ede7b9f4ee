// Steps of entries that have an age, a factor or an origin of their own.
#pragma once

#include <type_traits>

#include "../adamw.h"
#include "convert.h"
#include "move.h"
#include "ops.h"
#include "simd.h"

namespace sparse_ft {
namespace {

// Where nothing differs.
template <class T>
void update_run(const AdamWConstants<T>& c, const T* grad, T* value, T* exp_avg, T* exp_avg_sq, int64_t count);

template <class T>
constexpr int64_t kLine = 64 / sizeof(T);  // entries

template <class T>
struct AdamWAges {  // by generation
  int64_t generations;
  T step_size[kGenerations], bias_correction2_sqrt[kGenerations];
};

template <class T>
using Number = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
struct LaneNumbers {
  typedef Number<T> type __attribute__((vector_size(kVectorBytes)));
};

// A byte a lane, by name: GCC takes the bytes of a vector one by one. `kWidens`: whether there is an instruction for it.
#if defined(__AVX512F__)
constexpr bool kWidens = kVectorBytes == 64;
template <class T>
inline __m512i widened_bytes(__m128i bytes) {
  return sizeof(T) == 4 ? _mm512_cvtepu8_epi32(bytes) : _mm512_cvtepu8_epi64(bytes);
}
#elif defined(__AVX2__)
constexpr bool kWidens = kVectorBytes == 32;
template <class T>
inline __m256i widened_bytes(__m128i bytes) {
  return sizeof(T) == 4 ? _mm256_cvtepu8_epi32(bytes) : _mm256_cvtepu8_epi64(bytes);
}
#else
constexpr bool kWidens = false;
#endif

template <class T>
inline typename LaneNumbers<T>::type widened(const uint8_t* from) {
  typename LaneNumbers<T>::type to{};
#if defined(__AVX2__)
  __m128i bytes = _mm_setzero_si128();
  __builtin_memcpy(&bytes, from, kLanes<T>);
  const auto wide = widened_bytes<T>(bytes);
  __builtin_memcpy(&to, &wide, sizeof to);
#endif
  return to;
}

// How the ages of entries are found: one vector, or two and what follows them, hold the numbers of a table.
enum AdamWAged { kOneAge, kInOneVector, kInVectors };

enum AdamWDecay { kToZero, kToOrigin };

// The ages of a line of entries are looked up in the middle of its update, whose square root and divisions take longer.
template <AdamWAged Aged, class T>
struct AgeTables {
  static constexpr int64_t kFirst = kLanes<T>;
  const AdamWAges<T>& ages;
  Vec<T> step_size[2], root[2];

  explicit AgeTables(const AdamWAges<T>* of) : ages(*of) {
    for (int i = 0; i < 2; ++i) step_size[i] = load(of->step_size + i * kFirst), root[i] = load(of->bias_correction2_sqrt + i * kFirst);
  }

  __attribute__((always_inline)) inline void look_up(const uint8_t* generation, T* to_step_size, T* to_root) const {
    if constexpr (kWidens) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kLine<T>; i += kFirst) look_up_vector(widened<T>(generation + i), to_step_size + i, to_root + i);
    } else {
      for (int64_t i = 0; i < kLine<T>; ++i)
        to_step_size[i] = ages.step_size[generation[i]], to_root[i] = ages.bias_correction2_sqrt[generation[i]];
    }
  }

 private:
  // `__builtin_shuffle` takes numbers modulo the lanes of its vectors.
  __attribute__((always_inline)) inline void look_up_vector(typename LaneNumbers<T>::type at, T* to_step_size, T* to_root) const {
    if constexpr (Aged == kInOneVector) {
      store(to_step_size, __builtin_shuffle(step_size[0], at));
      store(to_root, __builtin_shuffle(root[0], at));
      return;
    }
    Vec<T> found_step_size = __builtin_shuffle(step_size[0], step_size[1], at);
    Vec<T> found_root = __builtin_shuffle(root[0], root[1], at);
    for (int64_t first = 2 * kFirst; first < ages.generations; first += 2 * kFirst) {
      const T *sizes = ages.step_size + first, *roots = ages.bias_correction2_sqrt + first;
      const auto here = at >= static_cast<Number<T>>(first);
      found_step_size = here ? __builtin_shuffle(load(sizes), load(sizes + kFirst), at) : found_step_size;
      found_root = here ? __builtin_shuffle(load(roots), load(roots + kFirst), at) : found_root;
    }
    store(to_step_size, found_step_size);
    store(to_root, found_root);
  }
};

template <class T>
struct AgeTables<kOneAge, T> {
  explicit AgeTables(const AdamWAges<T>*) {}
  void look_up(const uint8_t*, T*, T*) const {}
};

// The streams of one piece that are there only where entries differ; null where they do not.
template <class T, class Origin>
struct VariedPiece {
  const AdamWAges<T>* ages;
  const uint8_t* generation;
  const T* factor;
  const Origin* origin;
};

template <AdamWAged Aged, bool Scaled, AdamWDecay Decay, uint64_t kFromExpAvg, class T, class Origin>
void update_varied_run(const AdamWConstants<T>& constants, const VariedPiece<T, Origin>& piece, const T* __restrict grad,
                       T* __restrict value, T* __restrict exp_avg, T* __restrict exp_avg_sq, int64_t count) {
  constexpr int64_t kAhead = 2048 / sizeof(T);  // as in `update_run`
  const AdamWConstants<T> c = constants;
  const uint8_t* __restrict generation = piece.generation;
  const T* __restrict factor = piece.factor;
  const Origin* __restrict origin = piece.origin;
  const auto update = [&](int64_t i, AdamWAge<T> age) {
    const T towards = Decay == kToOrigin ? convert(origin[i], Tag<T>()) : T(0);
    adamw_update_varied(c, kFromExpAvg, age, Scaled, Scaled ? factor[i] : T(1), Decay == kToOrigin, towards, grad[i], value[i], exp_avg[i],
                        exp_avg_sq[i]);
  };
  const AdamWAge<T> same{c.step_size, c.bias_correction2_sqrt};
  const AgeTables<Aged, T> tables(piece.ages);
  int64_t i = 0;
  for (; i + kLine<T> <= count; i += kLine<T>) {
    __builtin_prefetch(grad + i + kAhead);
    __builtin_prefetch(value + i + kAhead);
    __builtin_prefetch(exp_avg + i + kAhead);
    __builtin_prefetch(exp_avg_sq + i + kAhead);
    if (Scaled) __builtin_prefetch(factor + i + kAhead);
    if (Decay == kToOrigin) __builtin_prefetch(origin + i + kAhead);
    T step_size[kLine<T>], root[kLine<T>];
    if (Aged) tables.look_up(generation + i, step_size, root);
#pragma GCC ivdep
    for (int64_t j = 0; j < kLine<T>; ++j) update(i + j, Aged ? AdamWAge<T>{step_size[j], root[j]} : same);
  }
#pragma GCC ivdep
  for (; i < count; ++i)
    update(i, Aged ? AdamWAge<T>{piece.ages->step_size[generation[i]], piece.ages->bias_correction2_sqrt[generation[i]]} : same);
}

template <class T>
constexpr DType kDTypeOf = sizeof(T) == 8 ? kFloat64 : kFloat32;

// In place where they are that already.
template <class T>
const T* factors_of(const AdamWVariation& v, int64_t k, int64_t count, T* buffer) {
  if (v.factor_run == 1) {
    if constexpr (sizeof(T) == sizeof(float)) return v.factor + k;
    convert_any(buffer, kDTypeOf<T>, v.factor + k, kFloat32, count);
    return buffer;
  }
  for (int64_t i = 0; i < count;) {
    const int64_t run = (k + i) / v.factor_run, end = smaller((run + 1) * v.factor_run - k, count);
    for (const T factor = static_cast<T>(v.factor[run]); i < end; ++i) buffer[i] = factor;
  }
  return buffer;
}

template <class T>
const T* origins_of(const AdamWVariation& v, int64_t k, int64_t count, T* buffer) {
  if (v.origin_dtype == kDTypeOf<T>) return static_cast<const T*>(v.origin) + k;
  convert_any(buffer, kDTypeOf<T>, static_cast<const char*>(v.origin) + k * size_of(v.origin_dtype), v.origin_dtype, count);
  return buffer;
}

template <AdamWAged Aged, bool Scaled, AdamWDecay Decay, class T, class Origin, class... Streams>
void with_nearer_end(const AdamWConstants<T>& c, const VariedPiece<T, Origin>& piece, Streams... streams) {
  if (c.from_exp_avg) update_varied_run<Aged, Scaled, Decay, ~uint64_t{0}>(c, piece, streams...);
  else update_varied_run<Aged, Scaled, Decay, 0>(c, piece, streams...);
}

template <AdamWAged Aged, bool Scaled, class T, class... Streams>
void with_decay(const AdamWConstants<T>& c, const VariedPiece<T, T>& piece, const BFloat16* origin, Streams... streams) {
  const VariedPiece<T, BFloat16> to_bfloat16{piece.ages, piece.generation, piece.factor, origin};
  if (origin) with_nearer_end<Aged, Scaled, kToOrigin>(c, to_bfloat16, streams...);
  else if (piece.origin) with_nearer_end<Aged, Scaled, kToOrigin>(c, piece, streams...);
  else with_nearer_end<Aged, Scaled, kToZero>(c, piece, streams...);
}

constexpr int64_t kLongRun = 64;  // entries, from which on the constants of a run are made for it

// Of one age and without an origin: runs of one factor are as any others, with other constants.
template <class T>
void update_runs(const AdamWConstants<T>& constants, const AdamWVariation& v, int64_t k, const T* grad, T* value, T* exp_avg, T* exp_avg_sq,
                 int64_t count) {
  const int64_t first = k / v.factor_run;
  const float* factor = v.factor + first;
  int64_t end = (first + 1) * v.factor_run - k;
  for (int64_t begin = 0; begin < count; begin = end, end += v.factor_run, ++factor) {
    AdamWConstants<T> c = constants;
    c.step_size *= static_cast<T>(*factor);
    c.decay = T(1) - c.decay_rate * static_cast<T>(*factor);
    update_run(c, grad + begin, value + begin, exp_avg + begin, exp_avg_sq + begin, smaller(end, count) - begin);
  }
}

// k: the first entry of the piece, by which `v` counts; the streams begin with the piece.
template <class T>
void update_varied(const AdamWConstants<T>& c, const AdamWAges<T>* ages, const AdamWVariation& v, int64_t k, const T* grad, T* value,
                   T* exp_avg, T* exp_avg_sq, int64_t count) {
  if (!v.generation && !v.origin && v.factor_run >= kLongRun) return update_runs(c, v, k, grad, value, exp_avg, exp_avg_sq, count);
  T factor[kPiece], origin[kPiece];
  VariedPiece<T, T> piece{};
  const BFloat16* bfloat16_origin = nullptr;
  if (v.generation) piece.ages = ages, piece.generation = v.generation + k;
  if (v.factor) piece.factor = factors_of(v, k, count, factor);
  if (v.origin && v.origin_dtype == kBFloat16) bfloat16_origin = static_cast<const BFloat16*>(v.origin) + k;
  else if (v.origin) piece.origin = origins_of(v, k, count, origin);
  const auto run = [&](auto aged) {
    constexpr AdamWAged kAged = decltype(aged)::value;
    if (v.factor) with_decay<kAged, true>(c, piece, bfloat16_origin, grad, value, exp_avg, exp_avg_sq, count);
    else with_decay<kAged, false>(c, piece, bfloat16_origin, grad, value, exp_avg, exp_avg_sq, count);
  };
  if (!v.generation) run(std::integral_constant<AdamWAged, kOneAge>());
  else if (v.generations <= kLanes<T>) run(std::integral_constant<AdamWAged, kInOneVector>());
  else run(std::integral_constant<AdamWAged, kInVectors>());
}

}  // namespace
}  // namespace sparse_ft
