// Max pooling of planes with where in its window each maximum was, in one byte. An output row is gone over once for each element of
// the window, so that columns lie side by side in vectors; a row and its numbers stay in the first-level cache.
#include "../checks.h"
#include "ops.h"
#include "wide.h"

namespace sparse_ft {
namespace {

constexpr double kNanoseconds = 0.3;  // an element of a window takes

struct PoolWindow {
  int64_t size[2], out_size[2];  // of a plane and of what it becomes
  int64_t kernel[2], stride[2], padding[2], dilation[2];
};

// The last two sizes of a tensor.
Pair plane_of(In t) { return {t.size[t.dim - 2], t.size[t.dim - 1]}; }

PoolWindow window_of(In input, Pair kernel, Pair stride, Pair padding, Pair dilation, Out output) {
  const Pair size = plane_of(input), out_size = plane_of(output);
  PoolWindow w;
  for (int d = 0; d < 2; ++d) {
    check_range("kernel_size", kernel[d], 1);
    check_range("stride", stride[d], 1);
    check_range("padding", padding[d], 0);
    check_range("dilation", dilation[d], 1);
    w.size[d] = size[d], w.out_size[d] = out_size[d];
    w.kernel[d] = kernel[d], w.stride[d] = stride[d];
    w.padding[d] = padding[d], w.dilation[d] = dilation[d];
  }
  check_range("kernel_size", kernel[0] * kernel[1], 1, 256);  // a byte tells them apart
  return w;
}

// As torch has it: a larger element, or NaN, takes the place.
template <int Stride, class Stored, class T, class Number>
void largest_run(const Stored* input, int64_t stride, Number number, T* best, Number* __restrict numbers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T x = convert(input[i * (Stride ? Stride : stride)], Tag<T>());
    const bool take = (x > best[i]) | (x != x);
    best[i] = take ? x : best[i];
    numbers[i] = take ? number : numbers[i];
  }
}

int64_t ceil_div(int64_t a, int64_t b) { return a > 0 ? (a + b - 1) / b : 0; }  // not below 0

// Columns [column, column + count) of output row `row` of a plane.
template <class Stored>
void pool_piece(const Stored* plane, const PoolWindow& w, int64_t row, int64_t column, int64_t count, Stored* output, uint8_t* numbers) {
  using T = Wide<Stored>;
  using Number = Integer<T>;
  T best[kPiece];
  Number found[kPiece];
  const int64_t top = row * w.stride[0] - w.padding[0], first_row = ceil_div(-top, w.dilation[0]);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t left = (column + i) * w.stride[1] - w.padding[1];
    best[i] = -__builtin_inff();
    found[i] = static_cast<Number>(first_row * w.kernel[1] + ceil_div(-left, w.dilation[1]));
  }
  for (int64_t r = first_row; r < w.kernel[0] && top + r * w.dilation[0] < w.size[0]; ++r) {
    const Stored* from = plane + (top + r * w.dilation[0]) * w.size[1];
    for (int64_t c = 0; c < w.kernel[1]; ++c) {
      const int64_t at = c * w.dilation[1] - w.padding[1];  // of column 0
      const int64_t begin = larger(ceil_div(-at, w.stride[1]) - column, 0);
      const int64_t end = smaller(ceil_div(w.size[1] - at, w.stride[1]) - column, count);
      if (begin >= end) continue;
      const Stored* input = from + at + (column + begin) * w.stride[1];
      const auto number = static_cast<Number>(r * w.kernel[1] + c);
      switch (w.stride[1]) {
        case 1: largest_run<1>(input, 1, number, best + begin, found + begin, end - begin); break;
        case 2: largest_run<2>(input, 2, number, best + begin, found + begin, end - begin); break;
        default: largest_run<0>(input, w.stride[1], number, best + begin, found + begin, end - begin);
      }
    }
  }
  convert_run(output, best, count);
  for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<uint8_t>(found[i]);
}

}  // namespace

namespace SFT_VARIANT {

void max_pool(In input, Pair kernel, Pair stride, Pair padding, Pair dilation, Out output, Out numbers,
              int threads) {
  check_planes(input, output);
  const PoolWindow w = window_of(input, kernel, stride, padding, dilation, output);
  check_dtype(numbers, kUInt8);
  check_count(numbers, output.count);
  with_dtype(input.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    const int64_t count = output.count, plane_size = w.size[0] * w.size[1];
    const double nanoseconds = count * kNanoseconds * w.kernel[0] * w.kernel[1];
    for_each_chunk(count, team_for(nanoseconds, threads), [&](int64_t begin, int64_t end) {
      for_each_row_piece(begin, end, w.out_size[1], [&](int64_t k, int64_t row, int64_t column, int64_t size) {
        const Stored* plane = data_of<const Stored>(input) + row / w.out_size[0] * plane_size;
        pool_piece(plane, w, row % w.out_size[0], column, size, data_of<Stored>(output) + k,
                   data_of<uint8_t>(numbers) + k);
      });
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
