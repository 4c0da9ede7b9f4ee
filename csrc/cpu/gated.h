// act(gate) * up, or act(gate) alone, and the gradients: one pass over rows that may be halves of a wider projection. 16-bit operands
// are widened a piece at a time into buffers that stay in the first-level cache. An element's result does not depend on its place, so
// neither on threads.
#pragma once

#include <type_traits>

#include "../activation.h"
#include "move.h"
#include "ops.h"
#include "wide.h"

namespace sparse_ft {
namespace {

// Threads that `count` elements deserve, from the nanoseconds that one takes at least: in the cache, with the widest instructions.
template <class Act, class Stored>
int activators(int64_t count, int threads) {
  const double nanoseconds = std::is_same<Act, Relu>::value ? 0.2 : std::is_same<Stored, double>::value ? 4.0 : 0.5;
  return team_for(count * nanoseconds, threads);
}

template <class Act, bool kGated, class T>
void product_run(const T* __restrict gate, const T* __restrict up, T* __restrict output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = Act::value(gate[i]);
    if constexpr (kGated) output[i] = value * up[i];
    else output[i] = value;
  }
}

template <class Act, bool kGated, class T>
void gradient_run(const T* __restrict grad_output, const T* __restrict gate, const T* __restrict up, T* __restrict grad_gate,
                  T* __restrict grad_up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const auto act = Act::both(gate[i]);
    if constexpr (kGated) {
      grad_gate[i] = grad_output[i] * up[i] * act.slope;
      grad_up[i] = grad_output[i] * act.value;
    } else {
      grad_gate[i] = grad_output[i] * act.slope;
    }
  }
}

// kGated: there is an up; without it the pointers to it and to its gradient are null.
template <class Act, bool kGated, class Stored>
void product(const Matrix& gate, Rows up, Stored* output, int threads) {
  using T = Wide<Stored>;
  const int64_t total = gate.rows * gate.columns;
  for_each_chunk(total, activators<Act, Stored>(total, threads), [&](int64_t begin, int64_t end) {
    Widened<Stored> g, u, y;
    for_each_row_piece(begin, end, gate.columns, [&](int64_t k, int64_t row, int64_t column, int64_t count) {
      const T* by = kGated ? u.load(at<Stored>(up, row, column), count) : nullptr;
      T* to = y.target(output + k);
      product_run<Act, kGated>(g.load(at<Stored>(gate.where, row, column), count), by, to, count);
      y.finish(output + k, count);
    });
  });
}

template <class Act, bool kGated, class Stored>
void gradients(Rows grad_output, const Matrix& gate, Rows up, Stored* grad_gate, Stored* grad_up,
               int threads) {
  using T = Wide<Stored>;
  const int64_t total = gate.rows * gate.columns;
  for_each_chunk(total, activators<Act, Stored>(total, threads), [&](int64_t begin, int64_t end) {
    Widened<Stored> dy, g, u, dg, du;
    for_each_row_piece(begin, end, gate.columns, [&](int64_t k, int64_t row, int64_t column, int64_t count) {
      const T* by = kGated ? u.load(at<Stored>(up, row, column), count) : nullptr;
      T *to_gate = dg.target(grad_gate + k), *to_up = kGated ? du.target(grad_up + k) : nullptr;
      const T* dy_at = dy.load(at<Stored>(grad_output, row, column), count);
      const T* gate_at = g.load(at<Stored>(gate.where, row, column), count);
      gradient_run<Act, kGated>(dy_at, gate_at, by, to_gate, to_up, count);
      dg.finish(grad_gate + k, count);
      if (kGated) du.finish(grad_up + k, count);
    });
  });
}

template <bool kGated>
void product_of(const Matrix& gate, Rows up, DType dtype, Activation activation, void* output,
                int threads) {
  with_activation(activation, [&](auto act) {
    with_dtype(dtype, [&](auto stored) {
      product<decltype(act), kGated>(gate, up, static_cast<decltype(stored)*>(output), threads);
    });
  });
}

template <bool kGated>
void gradients_of(Rows grad_output, const Matrix& gate, Rows up, DType dtype, Activation activation,
                  void* grad_gate, void* grad_up, int threads) {
  with_activation(activation, [&](auto act) {
    with_dtype(dtype, [&](auto stored) {
      using Stored = decltype(stored);
      gradients<decltype(act), kGated>(grad_output, gate, up, static_cast<Stored*>(grad_gate),
                                       static_cast<Stored*>(grad_up), threads);
    });
  });
}

}  // namespace
}  // namespace sparse_ft
