#include "convert.h"
#include "ops.h"
#include "parallel.h"
#include "walk.h"

namespace sparse_ft {
namespace {

constexpr int64_t kChunk = 16384;  // entries: some 10 µs of work, as much as waking a thread costs

struct Copy {
  template <class Matrix, class Values>
  static void apply(Matrix& matrix, Values& value) { matrix = convert(value, Tag<Matrix>()); }
};
struct Add {
  template <class Matrix, class Values>
  static void apply(Matrix& matrix, Values& value) {
    using T = typename Compute<Matrix, Values>::type;
    matrix = convert(convert(matrix, Tag<T>()) + convert(value, Tag<T>()), Tag<Matrix>());
  }
};
struct Swap {
  template <class T>
  static void apply(T& matrix, T& value) {
    const T held = matrix;
    matrix = value;
    value = held;
  }
};

template <class Mode, class Matrix, class Values>
struct Scatter {
  Matrix* matrix;  // [rows, columns]
  Values* values;

  void run(int64_t k, int64_t position, int64_t count) const {
    Matrix* __restrict to = matrix + position;
    Values* __restrict from = values + k;
    for (int64_t i = 0; i < count; ++i) Mode::apply(to[i], from[i]);
  }

  template <class Index>
  void indexed(int64_t k, int64_t base, const Index* index, int64_t count) const {
    Matrix* to = matrix + base;
    Values* from = values + k;
    const int64_t ahead = larger(count - kPrefetchDistance, 0);
    int64_t i = 0;
    for (; i < ahead; ++i) {
      __builtin_prefetch(to + index[i + kPrefetchDistance], 1);
      Mode::apply(to[index[i]], from[i]);
    }
    for (; i < count; ++i) Mode::apply(to[index[i]], from[i]);
  }

  void padding(int64_t, int64_t) const {}
};

template <class Mode, class Matrix, class Values>
void scatter(void* matrix, const Layout& layout, void* values, int threads) {
  const int64_t count = values_count(layout), chunks = (count + kChunk - 1) / kChunk;
  const Scatter<Mode, Matrix, Values> visitor{static_cast<Matrix*>(matrix), static_cast<Values*>(values)};
  int64_t next = 0;
  parallel(static_cast<int>(smaller(threads, chunks)), [&](int, int) {
    for (int64_t chunk; (chunk = take(next)) < chunks;)
      walk(layout, chunk * kChunk, smaller((chunk + 1) * kChunk, count), visitor);
  });
}

}  // namespace

namespace SFT_VARIANT {

void scatter_selected_(void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, ScatterMode mode,
                       int threads) {
  with_dtype(matrix_dtype, [&](auto m) {
    using Matrix = decltype(m);
    if (mode == kSwap) return scatter<Swap, Matrix, Matrix>(matrix, layout, values, threads);
    with_dtype(values_dtype, [&](auto v) {
      using Values = decltype(v);
      if (mode == kAdd) return scatter<Add, Matrix, Values>(matrix, layout, values, threads);
      return scatter<Copy, Matrix, Values>(matrix, layout, values, threads);
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
