// Rows divided by their root mean square, and the gradient of that. A row belongs to one thread, which reads it twice: the second time
// from a cache. Sums run over a fixed number of lanes, so that every variant and every number of threads gives the same bits.
#include <type_traits>

#include "../checks.h"
#include "ops.h"
#include "simd.h"
#include "wide.h"

namespace sparse_ft {
namespace {

struct NormOperands {
  Rows input;
  DType input_dtype;
  const void* weight;  // [columns], or null: no factor
  DType weight_dtype;
  int64_t rows, columns;
  double offset;  // added to the weight
  DType wide;     // of the arithmetic and of rstd [rows]: float32 or float64
};

NormOperands operands_of(In input, MaybeIn weight, double offset, In rstd) {
  const Matrix x = matrix_of(input, false);
  if (weight.data) check_floats(weight, x.columns);
  if (rstd.dtype != kFloat64) check_dtype(rstd, kFloat32);
  check_count(rstd, x.rows);
  return NormOperands{x.where,   input.dtype, weight.data, weight.dtype,
                      x.rows,    x.columns,   offset,      rstd.dtype};
}

// The sum of a[i] * b[i] over at most kPiece elements.
template <class T>
T dot(const T* a, const T* b, int64_t count) {
  constexpr int kSums = 128 / static_cast<int>(sizeof(T)), kVectors = kSums / kLanes<T>;
  Vec<T> sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[v] += load(a + i + v * kLanes<T>) * load(b + i + v * kLanes<T>);
  T lanes[kSums];
  memcpy(lanes, sums, sizeof lanes);
  for (int j = 0; i + j < count; ++j) lanes[j] += a[i + j] * b[i + j];
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  return lanes[0];
}

// y = x * scale * (offset + weight)
template <class T>
void normalise_run(const T* __restrict x, const T* __restrict weight, T scale, T offset, T* __restrict y, int64_t count) {
  if (!weight)
    for (int64_t i = 0; i < count; ++i) y[i] = x[i] * scale;
  else
    for (int64_t i = 0; i < count; ++i) y[i] = x[i] * scale * (offset + weight[i]);
}

// g = grad * (offset + weight)
template <class T>
void weigh_run(const T* __restrict grad, const T* __restrict weight, T offset, T* __restrict g, int64_t count) {
  for (int64_t i = 0; i < count; ++i) g[i] = grad[i] * (offset + weight[i]);
}

// grad_input = rstd * (g - x * rstd * mean)
template <class T>
void gradient_run(const T* __restrict g, const T* __restrict x, T rstd, T mean, T* __restrict grad_input, int64_t count) {
  for (int64_t i = 0; i < count; ++i) grad_input[i] = rstd * (g[i] - x[i] * rstd * mean);
}

// Elements [column, column + count) of a row in T: where they lie, or widened into the buffer.
template <class T>
const T* piece_of(const void* row, DType dtype, int64_t column, int64_t count, T* buffer) {
  const void* from = static_cast<const char*>(row) + column * size_of(dtype);
  const T* found = buffer;
  with_dtype(dtype, [&](auto stored) {
    using Stored = decltype(stored);
    if constexpr (std::is_same<Stored, T>::value)
      found = static_cast<const T*>(from);
    else
      convert_run(buffer, static_cast<const Stored*>(from), count);
  });
  return found;
}

template <class T>
const T* weight_piece(const NormOperands& n, int64_t column, int64_t count, T* buffer) {
  return n.weight ? piece_of(n.weight, n.weight_dtype, column, count, buffer) : nullptr;
}

// Calls f(column, count) for the pieces of a row.
template <class F>
void for_each_column_piece(int64_t columns, F&& f) {
  for (int64_t c = 0; c < columns; c += kPiece) f(c, smaller(kPiece, columns - c));
}

// Calls f(row), rows shared between the threads a few at a time.
template <class F>
void for_each_row(int64_t rows, int64_t columns, int threads, F&& f) {
  const int64_t chunk = larger(16384 / larger(columns, 1), 1), chunks = (rows + chunk - 1) / chunk;
  int64_t next = 0;
  parallel(static_cast<int>(smaller(threads, chunks)), [&](int, int) {
    for (int64_t taken; (taken = take(next)) < chunks;)
      for (int64_t row = taken * chunk; row < smaller((taken + 1) * chunk, rows); ++row) f(row);
  });
}

const char* row_of(Rows rows, DType dtype, int64_t row) {
  return static_cast<const char*>(rows.data) + row * rows.stride * size_of(dtype);
}

template <class T>
struct Buffers {
  T x[kPiece], weight[kPiece], grad[kPiece], result[kPiece];
};

template <class T>
void normalise_row(const NormOperands& n, int64_t row, T eps, T* rstd, char* output, DType output_dtype) {
  Buffers<T> buffers;
  const char* from = row_of(n.input, n.input_dtype, row);
  double squares = 0;
  for_each_column_piece(n.columns, [&](int64_t c, int64_t count) {
    const T* x = piece_of(from, n.input_dtype, c, count, buffers.x);
    squares += static_cast<double>(dot(x, x, count));
  });
  const T scale = static_cast<T>(1.0 / __builtin_sqrt(squares / static_cast<double>(n.columns) + static_cast<double>(eps)));
  rstd[row] = scale;
  for_each_column_piece(n.columns, [&](int64_t c, int64_t count) {
    const T* x = piece_of(from, n.input_dtype, c, count, buffers.x);
    const T* weight = weight_piece(n, c, count, buffers.weight);
    void* to = output + (row * n.columns + c) * size_of(output_dtype);
    const bool in_place = output_dtype == n.wide;
    normalise_run(x, weight, scale, static_cast<T>(n.offset), in_place ? static_cast<T*>(to) : buffers.result, count);
    if (!in_place) convert_any(to, output_dtype, buffers.result, n.wide, count);
  });
}

template <class T>
void gradient_row(const NormOperands& n, int64_t row, Rows grad_output, DType grad_dtype, T rstd, char* grad_input) {
  Buffers<T> buffers;
  const char *x_row = row_of(n.input, n.input_dtype, row), *grad_row = row_of(grad_output, grad_dtype, row);
  const auto weighted = [&](int64_t c, int64_t count) {
    const T* grad = piece_of(grad_row, grad_dtype, c, count, buffers.grad);
    const T* weight = weight_piece(n, c, count, buffers.weight);
    if (!weight) return grad;
    weigh_run(grad, weight, static_cast<T>(n.offset), buffers.result, count);
    return static_cast<const T*>(buffers.result);
  };
  double products = 0;
  for_each_column_piece(n.columns, [&](int64_t c, int64_t count) {
    products += static_cast<double>(dot(weighted(c, count), piece_of(x_row, n.input_dtype, c, count, buffers.x), count));
  });
  const T mean = static_cast<T>(products * static_cast<double>(rstd) / static_cast<double>(n.columns));
  for_each_column_piece(n.columns, [&](int64_t c, int64_t count) {
    const T* g = weighted(c, count);
    const T* x = piece_of(x_row, n.input_dtype, c, count, buffers.x);
    void* to = grad_input + (row * n.columns + c) * size_of(n.input_dtype);
    const bool in_place = n.input_dtype == n.wide;
    gradient_run(g, x, rstd, mean, in_place ? static_cast<T*>(to) : buffers.grad, count);
    if (!in_place) convert_any(to, n.input_dtype, buffers.grad, n.wide, count);
  });
}

template <class F>
void with_wide(DType wide, F&& f) {
  if (wide == kFloat64) f(double());
  else f(float());
}

}  // namespace

namespace SFT_VARIANT {

void rms_norm(In input, MaybeIn weight, double eps, double offset, Out output, Out rstd,
              int threads) {
  const NormOperands n = operands_of(input, weight, offset, rstd);
  check_floats(output, input.count);
  with_wide(n.wide, [&](auto wide) {
    using T = decltype(wide);
    for_each_row(n.rows, n.columns, threads, [&](int64_t row) {
      normalise_row<T>(n, row, static_cast<T>(eps), data_of<T>(rstd), data_of<char>(output), output.dtype);
    });
  });
}

void rms_norm_backward(In grad_output, In input, In rstd, MaybeIn weight, double offset,
                       Out grad_input, int threads) {
  const NormOperands n = operands_of(input, weight, offset, rstd);
  const Rows grad = rows_like(grad_output, input, {n.input, n.rows, n.columns}, false);
  check_like(grad_input, input);
  with_wide(n.wide, [&](auto wide) {
    using T = decltype(wide);
    for_each_row(n.rows, n.columns, threads, [&](int64_t row) {
      gradient_row<T>(n, row, grad, grad_output.dtype, data_of<const T>(rstd)[row], data_of<char>(grad_input));
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
