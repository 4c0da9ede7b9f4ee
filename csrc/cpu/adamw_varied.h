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

// The ages of a line of entries are looked up in the middle of its update, whose square root and divisions take longer.
template <AdamWAged Aged, class T>
struct AgeTables {
  static constexpr int64_t kFirst = kLanes<T>;
  const AdamWAges<T>& ages;
  const T factor;  // what each step size is multiplied with
  Vec<T> step_size[2], root[2];

  AgeTables(const AdamWAges<T>* of, T by) : ages(*of), factor(by) {
    for (int i = 0; i < 2; ++i) {
      step_size[i] = load(ages.step_size + i * kFirst) * factor;
      root[i] = load(ages.bias_correction2_sqrt + i * kFirst);
    }
  }

  __attribute__((always_inline)) inline void look_up(const uint8_t* generation, T* to_step_size, T* to_root) const {
    if constexpr (kWidens) {
      look_up_vector(widened<T>(generation), to_step_size, to_root);
    } else {
      for (int64_t i = 0; i < kFirst; ++i) {
        to_step_size[i] = ages.step_size[generation[i]] * factor;
        to_root[i] = ages.bias_correction2_sqrt[generation[i]];
      }
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
      found_step_size = here ? __builtin_shuffle(load(sizes), load(sizes + kFirst), at) * factor : found_step_size;
      found_root = here ? __builtin_shuffle(load(roots), load(roots + kFirst), at) : found_root;
    }
    store(to_step_size, found_step_size);
    store(to_root, found_root);
  }
};

template <class T>
struct AgeTables<kOneAge, T> {
  AgeTables(const AdamWAges<T>*, T) {}
  void look_up(const uint8_t*, T*, T*) const {}
};

// The streams of a step, from some entry on; null where nothing differs.
template <class T>
struct VariedStreams {
  const T* grad;
  T *value, *exp_avg, *exp_avg_sq;
  const uint8_t* generation;
  const T* factor;
  const T* origin;
  const BFloat16* bfloat16_origin;
};

enum AdamWDecay { kToZero, kToOrigin, kToBFloat16Origin };

template <AdamWDecay Decay, class T>
auto origin_of(const VariedStreams<T>& streams) {
  if constexpr (Decay == kToBFloat16Origin) return streams.bfloat16_origin;
  else return streams.origin;
}

// Entries of the streams up to its end, whose values an update writes to the weight as well.
struct WrittenRun {
  int64_t end;
  void* to;  // where the streams' first value would go to if it were in this run; the values themselves: nowhere else
};

// Updates entries [begin, end) of the streams. runs: in these the entries are, the first one in the first; each, but for the last one, has
// whole lines of them. factor: of each of these, or null. of_all: of all of them; `decay`, what a value keeps, has it in already.
template <class T>
using VariedUpdate = void (*)(const AdamWConstants<T>&, const AdamWAges<T>*, const VariedStreams<T>&, const WrittenRun* runs,
                              int64_t begin, int64_t end, const T* factor, T of_all, T decay);

// Those after the last whole line, apart and for all cases: this loop's many numbers would drive those of the other one out of the
// registers, a part of them with stores, which wait in a queue behind the write-through of the piece before.
template <class T>
__attribute__((noinline)) void update_varied_rest(const AdamWConstants<T>& constants, const AdamWAges<T>* ages,
                                                  const VariedStreams<T>& streams, T* written, int64_t begin, int64_t end, const T* factor,
                                                  T of_all, T decay) {
  AdamWConstants<T> c = constants;
  c.decay = decay;
  c.decay_rate *= of_all;
  for (int64_t i = begin; i < end; ++i) {
    AdamWAge<T> age{c.step_size, c.bias_correction2_sqrt};
    if (streams.generation) age = {ages->step_size[streams.generation[i]], ages->bias_correction2_sqrt[streams.generation[i]]};
    age.step_size *= of_all;
    const bool to_origin = streams.origin || streams.bfloat16_origin;
    T origin = 0;
    if (streams.origin) origin = streams.origin[i];
    if (streams.bfloat16_origin) origin = convert(streams.bfloat16_origin[i], Tag<T>());
    adamw_update_varied(c, c.from_exp_avg, age, factor, factor ? factor[i - begin] : T(1), to_origin, origin, streams.grad[i],
                        streams.value[i], streams.exp_avg[i], streams.exp_avg_sq[i]);
    written[i] = streams.value[i];
  }
}

template <AdamWAged Aged, bool Scaled, AdamWDecay Decay, uint64_t kFromExpAvg, class T>
void update_varied_run(const AdamWConstants<T>& constants, const AdamWAges<T>* ages, const VariedStreams<T>& streams,
                       const WrittenRun* runs, int64_t begin, int64_t end, const T* __restrict factor, T of_all, T decay) {
  constexpr int64_t kAhead = 2048 / sizeof(T);  // as in `update_run`
  constexpr bool kVariedAges = Aged != kOneAge, kDecaysToOrigin = Decay != kToZero;
  AdamWConstants<T> c = constants;
  c.decay = decay;
  c.decay_rate *= of_all;
  const AdamWAge<T> same{c.step_size * of_all, c.bias_correction2_sqrt};
  const AgeTables<Aged, T> tables(ages, of_all);
  const T* __restrict grad = streams.grad + begin;
  T* __restrict value = streams.value + begin;
  T* __restrict exp_avg = streams.exp_avg + begin;
  T* __restrict exp_avg_sq = streams.exp_avg_sq + begin;
  const uint8_t* __restrict generation = kVariedAges ? streams.generation + begin : nullptr;
  const auto* __restrict origin = kDecaysToOrigin ? origin_of<Decay>(streams) + begin : nullptr;
  for (int64_t i = 0; begin + i < end; ++runs) {
    T* written = static_cast<T*>(runs->to) + begin;
    const int64_t count = smaller(runs->end, end) - begin;
    for (; i + kLine<T> <= count; i += kLine<T>) {
      __builtin_prefetch(grad + i + kAhead);
      __builtin_prefetch(value + i + kAhead);
      __builtin_prefetch(exp_avg + i + kAhead);
      __builtin_prefetch(exp_avg_sq + i + kAhead);
      if (kVariedAges) __builtin_prefetch(generation + i + kAhead);
      if (Scaled) __builtin_prefetch(factor + i + kAhead);
      if (kDecaysToOrigin) __builtin_prefetch(origin + i + kAhead);
#pragma GCC unroll 8
      for (int64_t k = i; k < i + kLine<T>; k += kLanes<T>) {
        T step_size[kLanes<T>], root[kLanes<T>];  // in registers, as long as GCC knows the length of the loop that follows
        if (kVariedAges) tables.look_up(generation + k, step_size, root);
#pragma GCC ivdep
        for (int64_t j = 0; j < kLanes<T>; ++j) {
          const AdamWAge<T> age = kVariedAges ? AdamWAge<T>{step_size[j], root[j]} : same;
          const T towards = kDecaysToOrigin ? convert(origin[k + j], Tag<T>()) : T(0);
          T updated = value[k + j];
          adamw_update_varied(c, kFromExpAvg, age, Scaled, Scaled ? factor[k + j] : T(1), kDecaysToOrigin, towards, grad[k + j], updated,
                              exp_avg[k + j], exp_avg_sq[k + j]);
          value[k + j] = updated;
          written[k + j] = updated;
        }
      }
    }
    if (i == count) continue;
    written -= begin;
    return update_varied_rest(constants, ages, streams, written, begin + i, end, Scaled ? factor + i : nullptr, of_all, decay);
  }
}

template <AdamWAged Aged, bool Scaled, AdamWDecay Decay, class T>
VariedUpdate<T> with_nearer_end(const AdamWConstants<T>& c) {
  if (c.from_exp_avg) return update_varied_run<Aged, Scaled, Decay, ~uint64_t{0}, T>;
  return update_varied_run<Aged, Scaled, Decay, 0, T>;
}

template <AdamWAged Aged, bool Scaled, class T>
VariedUpdate<T> with_decay(const AdamWConstants<T>& c, const AdamWVariation& v) {
  if (!v.origin) return with_nearer_end<Aged, Scaled, kToZero>(c);
  if (v.origin_dtype == kBFloat16) return with_nearer_end<Aged, Scaled, kToBFloat16Origin>(c);
  return with_nearer_end<Aged, Scaled, kToOrigin>(c);
}

template <bool Scaled, class T>
VariedUpdate<T> with_ages(const AdamWConstants<T>& c, const AdamWVariation& v) {
  if (!v.generation) return with_decay<kOneAge, Scaled>(c, v);
  if (v.generations <= kLanes<T>) return with_decay<kInOneVector, Scaled>(c, v);
  return with_decay<kInVectors, Scaled>(c, v);
}

template <class T>
constexpr DType kDTypeOf = sizeof(T) == 8 ? kFloat64 : kFloat32;
constexpr int64_t kLongRun = 64;  // entries, from which on the constants of a run are made for it

// What is the same for every piece of a tensor, looked up once a step: what is done before the first division of a piece, which takes some
// 900 cycles in the cache, adds to its time. The addresses are written long before they are read, and no struct of them is copied in
// between: a load that is wider than the stores it reads from waits until these have left their queue, behind all divisions before.
template <class T>
struct Varied {
  const AdamWAges<T>* ages;
  VariedStreams<T> streams;  // from the tensor's first entry on; null where they are not read as they lie
  VariedUpdate<T> of_one_factor, of_factors;
  bool in_runs;                       // of one factor, and long
  bool reads_factors, reads_origins;  // into a buffer first, in the dtype of the update
  bool in_place;
};

// What is the same for every chunk of a tensor.
template <class T>
struct Shared {
  AdamWConstants<T> constants;
  Varied<T> varied;  // where its entries differ
};

template <class T>
Varied<T> varied_of(const AdamWTensor& t, const AdamWConstants<T>& c, const AdamWAges<T>* ages) {
  const AdamWVariation& v = t.variation;
  Varied<T> varied{};
  if (!is_varied(v)) return varied;
  varied.ages = ages;
  varied.of_one_factor = with_ages<false>(c, v);
  varied.of_factors = with_ages<true>(c, v);
  varied.streams.generation = v.generation;
  varied.in_runs = v.factor && v.factor_run >= kLongRun;
  if constexpr (sizeof(T) == sizeof(float))
    if (v.factor_run == 1) varied.streams.factor = v.factor;
  if (v.origin_dtype == kDTypeOf<T>) varied.streams.origin = static_cast<const T*>(v.origin);
  if (v.origin_dtype == kBFloat16) varied.streams.bfloat16_origin = static_cast<const BFloat16*>(v.origin);
  varied.reads_factors = v.factor && !varied.in_runs && !varied.streams.factor;
  varied.reads_origins = v.origin && !varied.streams.origin && !varied.streams.bfloat16_origin;
  varied.in_place = t.dtype == kDTypeOf<T> && !varied.reads_factors && !varied.reads_origins;
  if (!varied.in_place) return varied;
  varied.streams.grad = static_cast<const T*>(t.grad);
  varied.streams.value = static_cast<T*>(t.values);
  varied.streams.exp_avg = static_cast<T*>(t.exp_avg);
  varied.streams.exp_avg_sq = static_cast<T*>(t.exp_avg_sq);
  return varied;
}

// A run of one factor is as entries without, but for constants. It ends with a whole line, counted from the piece's first entry: in the
// line in which it meets the next one each entry has its factor. offset: which entry of the tensor the first one of the streams is.
template <class T>
void update_runs(const AdamWConstants<T>& c, const Varied<T>& varied, const VariedStreams<T>& streams, const AdamWVariation& v,
                 const WrittenRun* runs, int64_t offset, int64_t begin, int64_t end) {
  const int64_t first = (offset + begin) / v.factor_run, start = begin;
  const float* factor = v.factor + first;
  const auto update = [&](int64_t until) {
    const T of_all = static_cast<T>(*factor);
    if (begin == until) return;
    while (runs->end <= begin) ++runs;
    varied.of_one_factor(c, varied.ages, streams, runs, begin, until, nullptr, of_all, T(1) - c.decay_rate * of_all);
    begin = until;
  };
  for (int64_t next = (first + 1) * v.factor_run - offset; next < end; next += v.factor_run, ++factor) {
    update(next - (next - start) % kLine<T>);
    if (begin == next) continue;
    T meeting[kLine<T>];
    for (int64_t i = 0; i < kLine<T>; ++i) meeting[i] = static_cast<T>(begin + i < next ? factor[0] : factor[1]);
    const int64_t until = smaller(begin + kLine<T>, end);
    while (runs->end <= begin) ++runs;
    varied.of_factors(c, varied.ages, streams, runs, begin, until, meeting, T(1), c.decay);
    begin = until;
  }
  update(end);
}

template <class T>
void update_streams(const AdamWConstants<T>& c, const Varied<T>& varied, const VariedStreams<T>& streams, const AdamWVariation& v,
                    const WrittenRun* runs, int64_t offset, int64_t begin, int64_t end) {
  if (varied.in_runs) return update_runs(c, varied, streams, v, runs, offset, begin, end);
  if (streams.factor) return varied.of_factors(c, varied.ages, streams, runs, begin, end, streams.factor + begin, T(1), c.decay);
  varied.of_one_factor(c, varied.ages, streams, runs, begin, end, nullptr, T(1), c.decay);
}

template <class T>
void read_factors(const AdamWVariation& v, int64_t k, int64_t count, T* to) {
  if (v.factor_run == 1) return convert_any(to, kDTypeOf<T>, v.factor + k, kFloat32, count);
  for (int64_t i = 0; i < count;) {
    const int64_t run = (k + i) / v.factor_run, end = smaller((run + 1) * v.factor_run - k, count);
    for (const T factor = static_cast<T>(v.factor[run]); i < end; ++i) to[i] = factor;
  }
}

// Where the streams of a piece are not those of the tensor: they begin with the piece, whose first entry is the tensor's k-th. written: see
// `WrittenRun`.
template <class T>
void update_varied_apart(const Shared<T>& shared, const AdamWVariation& v, int64_t k, const T* grad, T* value, T* exp_avg, T* exp_avg_sq,
                         T* written, int64_t count) {
  const Varied<T>& varied = shared.varied;
  T factor[kPiece], origin[kPiece];
  VariedStreams<T> streams{grad, value, exp_avg, exp_avg_sq, nullptr, nullptr, nullptr, nullptr};
  if (varied.streams.generation) streams.generation = varied.streams.generation + k;
  if (varied.streams.factor) streams.factor = varied.streams.factor + k;
  if (varied.streams.origin) streams.origin = varied.streams.origin + k;
  if (varied.streams.bfloat16_origin) streams.bfloat16_origin = varied.streams.bfloat16_origin + k;
  if (varied.reads_factors) {
    read_factors(v, k, count, factor);
    streams.factor = factor;
  }
  if (varied.reads_origins) {
    convert_any(origin, kDTypeOf<T>, static_cast<const char*>(v.origin) + k * size_of(v.origin_dtype), v.origin_dtype, count);
    streams.origin = origin;
  }
  const WrittenRun run{count, written};
  update_streams(shared.constants, varied, streams, v, &run, k, 0, count);
}

}  // namespace
}  // namespace sparse_ft
