// Pieces of tensors in the type that arithmetic runs in: 16-bit elements pass through a buffer, wider ones are used in place.
#pragma once

#include "convert.h"
#include "move.h"
#include "ops.h"

namespace sparse_ft {
namespace {

template <class Stored>
using Wide = typename Compute<float, Stored>::type;

template <int Bytes>
struct IntegerOf;
template <>
struct IntegerOf<2> {
  using type = int16_t;
};
template <>
struct IntegerOf<4> {
  using type = int32_t;
};
template <>
struct IntegerOf<8> {
  using type = int64_t;
};
// As wide as T, so that as many fit a vector.
template <class T>
using Integer = typename IntegerOf<sizeof(T)>::type;

template <class Stored>
const Stored* at(Rows rows, int64_t row, int64_t column) {
  return static_cast<const Stored*>(rows.data) + row * rows.stride + column;
}

// Calls f(k, row, column, count) for the pieces of [begin, end), k = row * columns + column, that lie within one row.
template <class F>
void for_each_row_piece(int64_t begin, int64_t end, int64_t columns, F&& f) {
  for (int64_t k = begin, count; k < end; k += count) {
    const int64_t row = k / columns, column = k % columns;
    count = smaller(smaller(columns - column, end - k), kPiece);
    f(k, row, column, count);
  }
}

template <class Stored>
struct Widened {
  Wide<Stored> buffer[kPiece];

  const Wide<Stored>* load(const Stored* from, int64_t count) {
    convert_run(buffer, from, count);
    return buffer;
  }
  Wide<Stored>* target(Stored*) { return buffer; }
  void finish(Stored* to, int64_t count) { convert_run(to, buffer, count); }
};

template <class T>
struct InPlace {
  const T* load(const T* from, int64_t) { return from; }
  T* target(T* to) { return to; }
  void finish(T*, int64_t) {}
};
template <>
struct Widened<float> : InPlace<float> {};
template <>
struct Widened<double> : InPlace<double> {};

}  // namespace
}  // namespace sparse_ft
