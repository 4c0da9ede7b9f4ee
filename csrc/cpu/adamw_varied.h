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
struct AdamWAges {  // by generation
  T step_size[kGenerations], bias_correction2_sqrt[kGenerations];
};

// Of one piece, an entry each; null where nothing differs.
template <class T>
struct VariedPiece {
  const T *step_size, *bias_correction2_sqrt;
  const T *factor, *origin;
};

template <bool Aged, bool Scaled, AdamWDecay Decay, class T>
void update_varied_run(const AdamWConstants<T>& constants, const VariedPiece<T>& piece, const T* __restrict grad, T* __restrict value,
                       T* __restrict exp_avg, T* __restrict exp_avg_sq, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T), kAhead = 2048 / sizeof(T);  // as in `update_run`
  const AdamWConstants<T> c = constants;
  const T *__restrict step_size = piece.step_size, *__restrict root = piece.bias_correction2_sqrt;
  const T *__restrict factor = piece.factor, *__restrict origin = piece.origin;
  const auto update = [&](int64_t i) {
    const AdamWAge<T> age{Aged ? step_size[i] : c.step_size, Aged ? root[i] : c.bias_correction2_sqrt};
    adamw_update_varied<Scaled, Decay>(c, c.from_exp_avg, age, Scaled ? factor[i] : T(1), Decay == kToOrigin ? origin[i] : T(0), grad[i],
                                       value[i], exp_avg[i], exp_avg_sq[i]);
  };
  int64_t i = 0;
  for (; i + kLine <= count; i += kLine) {
    __builtin_prefetch(grad + i + kAhead);
    __builtin_prefetch(value + i + kAhead);
    __builtin_prefetch(exp_avg + i + kAhead);
    __builtin_prefetch(exp_avg_sq + i + kAhead);
    if (Scaled) __builtin_prefetch(factor + i + kAhead);
    for (int64_t j = i; j < i + kLine; ++j) update(j);
  }
  for (; i < count; ++i) update(i);
}

template <class T>
using Number = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// to[i] = table[number[i]]. Two vectors hold most tables, and one instruction looks into both; a load an entry would take longer than the
// step itself.
template <class T>
void look_up(T* __restrict to, const T* table, int64_t size, const Number<T>* __restrict number, int64_t count) {
  typedef Number<T> Numbers __attribute__((vector_size(kVectorBytes)));
  constexpr int64_t kStep = kLanes<T>, kHeld = 2 * kStep;
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) {
    Numbers at;
    __builtin_memcpy(&at, number + i, sizeof at);
    Vec<T> found = __builtin_shuffle(load(table), load(table + kStep), at);  // modulo kHeld
    for (int64_t first = kHeld; first < size; first += kHeld) {
      const Vec<T> other = __builtin_shuffle(load(table + first), load(table + first + kStep), at);
      found = at >= static_cast<Number<T>>(first) ? other : found;
    }
    store(to + i, found);
  }
  for (; i < count; ++i) to[i] = table[number[i]];
}

// GCC widens bytes well in a loop, and one by one in a vector.
template <class T>
void widen(T* __restrict to, const uint8_t* __restrict from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// In place where they are that already.
template <class T>
const T* factors_of(const AdamWVariation& v, int64_t k, int64_t count, T* buffer) {
  if (v.factor_run == 1) {
    if constexpr (sizeof(T) == sizeof(float)) return v.factor + k;
    convert_any(buffer, sizeof(T) == 8 ? kFloat64 : kFloat32, v.factor + k, kFloat32, count);
    return buffer;
  }
  for (int64_t i = 0; i < count;) {
    const int64_t run = (k + i) / v.factor_run, end = smaller((run + 1) * v.factor_run - k, count);
    for (const T factor = static_cast<T>(v.factor[run]); i < end; ++i) buffer[i] = factor;
  }
  return buffer;
}

// What a piece four pieces on reads of a stream: one that is read a piece at a time begins too late by itself.
inline void soon(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + 4 * bytes + i);
}

inline bool all_equal(const uint8_t* bytes, int64_t count) {
  uint8_t different = 0;
  for (int64_t i = 1; i < count; ++i) different |= bytes[i] ^ bytes[0];
  return !different;
}

template <bool Aged, bool Scaled, class T, class... Streams>
void with_decay(const AdamWConstants<T>& c, const VariedPiece<T>& piece, Streams... streams) {
  if (piece.origin) update_varied_run<Aged, Scaled, kToOrigin>(c, piece, streams...);
  else update_varied_run<Aged, Scaled, kToZero>(c, piece, streams...);
}

constexpr int64_t kLongRun = 64;  // entries, from which on the constants of a run are made for it

// Of one age and without an origin: runs of one factor are as any others, with other constants.
template <class T>
void update_runs(const AdamWConstants<T>& constants, const AdamWVariation& v, int64_t k, const T* grad, T* value, T* exp_avg, T* exp_avg_sq,
                 int64_t count) {
  for (int64_t i = 0; i < count;) {
    const int64_t run = (k + i) / v.factor_run, end = smaller((run + 1) * v.factor_run - k, count);
    const T factor = static_cast<T>(v.factor[run]);
    AdamWConstants<T> c = constants;
    c.step_size *= factor;
    c.decay = T(1) - c.decay_rate * factor;
    update_run(c, grad + i, value + i, exp_avg + i, exp_avg_sq + i, end - i);
    i = end;
  }
}

// k: the first entry of the piece, by which `v` counts; the streams begin with the piece.
template <class T>
void update_varied(const AdamWConstants<T>& constants, const AdamWAges<T>* ages, const AdamWVariation& v, int64_t k, const T* grad, T* value,
                   T* exp_avg, T* exp_avg_sq, int64_t count) {
  T step_size[kPiece], bias_correction2_sqrt[kPiece], factor[kPiece], origin[kPiece];
  AdamWConstants<T> c = constants;
  VariedPiece<T> piece{};
  if (const uint8_t* generation = v.generation ? v.generation + k : nullptr) {
    soon(generation, count);
    if (all_equal(generation, count)) {
      c.step_size = ages->step_size[*generation], c.bias_correction2_sqrt = ages->bias_correction2_sqrt[*generation];
    } else {
      Number<T> number[kPiece];
      widen(number, generation, count);
      look_up(step_size, ages->step_size, v.generations, number, count);
      look_up(bias_correction2_sqrt, ages->bias_correction2_sqrt, v.generations, number, count);
      piece.step_size = step_size, piece.bias_correction2_sqrt = bias_correction2_sqrt;
    }
  }
  if (!piece.step_size && !v.origin) {
    if (!v.factor) return update_run(c, grad, value, exp_avg, exp_avg_sq, count);
    if (v.factor_run >= kLongRun) return update_runs(c, v, k, grad, value, exp_avg, exp_avg_sq, count);
  }
  if (v.factor) piece.factor = factors_of(v, k, count, factor);
  if (v.origin) {
    const char* from = static_cast<const char*>(v.origin) + k * size_of(v.origin_dtype);
    soon(from, count * size_of(v.origin_dtype));
    convert_any(origin, sizeof(T) == 8 ? kFloat64 : kFloat32, from, v.origin_dtype, count);
    piece.origin = origin;
  }
  if (piece.step_size && piece.factor) with_decay<true, true>(c, piece, grad, value, exp_avg, exp_avg_sq, count);
  else if (piece.step_size) with_decay<true, false>(c, piece, grad, value, exp_avg, exp_avg_sq, count);
  else if (piece.factor) with_decay<false, true>(c, piece, grad, value, exp_avg, exp_avg_sq, count);
  else with_decay<false, false>(c, piece, grad, value, exp_avg, exp_avg_sq, count);
}

}  // namespace
}  // namespace sparse_ft
