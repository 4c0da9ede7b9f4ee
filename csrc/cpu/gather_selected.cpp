#include "convert.h"
#include "ops.h"
#include "parallel.h"
#include "walk.h"

namespace sparse_ft {
namespace {

constexpr int64_t kChunk = 16384;  // entries: some 10 µs of work, as much as waking a thread costs

template <class Matrix, class Values>
struct Gather {
  const Matrix* matrix;  // [rows, columns]
  Values* values;

  void run(int64_t k, int64_t position, int64_t count) const { convert_run(values + k, matrix + position, count); }

  template <class Index>
  void indexed(int64_t k, int64_t base, const Index* index, int64_t count) const {
    const Matrix* from = matrix + base;
    Values* to = values + k;
    const int64_t ahead = larger(count - kPrefetchDistance, 0);
    int64_t i = 0;
    for (; i < ahead; ++i) {
      __builtin_prefetch(from + index[i + kPrefetchDistance]);
      to[i] = convert(from[index[i]], Tag<Values>());
    }
    for (; i < count; ++i) to[i] = convert(from[index[i]], Tag<Values>());
  }

  void padding(int64_t k, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) values[k + i] = Values{};
  }
};

}  // namespace

namespace SFT_VARIANT {

void gather_selected(const void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, int threads) {
  const int64_t count = values_count(layout), chunks = (count + kChunk - 1) / kChunk;
  int64_t next = 0;
  parallel(static_cast<int>(smaller(threads, chunks)), [&](int, int) {
    for (int64_t chunk; (chunk = take(next)) < chunks;)
      with_dtype(matrix_dtype, [&](auto m) {
        with_dtype(values_dtype, [&](auto v) {
          walk(layout, chunk * kChunk, smaller((chunk + 1) * kChunk, count),
               Gather<decltype(m), decltype(v)>{static_cast<const decltype(m)*>(matrix), static_cast<decltype(v)*>(values)});
        });
      });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
