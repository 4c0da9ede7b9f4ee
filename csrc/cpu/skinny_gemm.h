// result[m, n] = sum over tokens of a[t, a_columns(m)] * b[t, n], for so few selected rows or columns that packing b would cost as
// much as the products. b is read once, where it lies: registers hold two vectors of each of some tokens, and the result passes by.
// One thread works one range of b from the first token to the last: the order of every sum is fixed.
#pragma once

#include "panel_gemm.h"

namespace sparse_ft {
namespace {

constexpr int kHeldTokens = kTileRows;
// At T = in = out = 2048, fp32, AVX2, one thread: 0.7 ms instead of 1.2 for 4 rows, 2.3 instead of 3.0 for 20, 3.4 instead of 3.8
// for 30; the two meet at 40.
constexpr int64_t kSkinnyRows = 32;
constexpr int64_t kSkinnyBytes = 256 << 10;  // of a range of the result: it stays in the second-level cache (half of it is slower)

template <class T>
struct SkinnyProblem {
  static constexpr int kWidth = kTileColumns<T>;
  const PanelProblem& panels;
  int64_t rows, columns;       // of the result
  int64_t range;               // of columns, a multiple of kWidth
  int64_t where[kSkinnyRows];  // the columns of a

  SkinnyProblem(const PanelProblem& panels, int threads) : panels(panels), rows(panels.layout->n) {
    columns = panels.layout->kind == kRows ? panels.layout->columns : panels.layout->rows;
    const int64_t most = kSkinnyBytes / (rows * static_cast<int64_t>(sizeof(T)));
    range = round_up(divide_up(columns, round_up(divide_up(columns, most), threads)), kWidth);
    for (int64_t m = 0; m < rows; ++m) where[m] = a_column(panels, Tile{}, m);
  }

  // packed [rows, kHeldTokens], zero past the last token; the next tokens are fetched early.
  template <class Source>
  void pack_tokens(int64_t t, const Source* a, T* packed) const {
    for (int i = 0; i < kHeldTokens; ++i) {
      const Source* row = a + smaller(t + i, panels.tokens - 1) * panels.a.stride;
      const Source* later = a + smaller(t + i + kHeldTokens, panels.tokens - 1) * panels.a.stride;
      for (int64_t m = 0; m < rows; ++m) {
        __builtin_prefetch(later + where[m]);
        packed[m * kHeldTokens + i] = t + i < panels.tokens ? convert(row[where[m]], Tag<T>()) : T{};
      }
    }
  }

  // sums [rows, kWidth] += a [rows, kHeldTokens] * b [kHeldTokens, kWidth]
  void add_products(const T* __restrict a, const T* __restrict b, int64_t stride, T* __restrict sums) const {
    constexpr int lanes = kLanes<T>;
    Vec<T> held[kHeldTokens][2];
#pragma GCC unroll 16
    for (int t = 0; t < kHeldTokens; ++t) {
      held[t][0] = load(b + t * stride);
      held[t][1] = load(b + t * stride + lanes);
    }
    for (int64_t m = 0; m < rows; ++m, a += kHeldTokens, sums += kWidth) {
      Vec<T> sum0 = a[0] * held[0][0], sum1 = a[0] * held[0][1];
#pragma GCC unroll 16
      for (int t = 1; t < kHeldTokens; ++t) {
        sum0 += a[t] * held[t][0];
        sum1 += a[t] * held[t][1];
      }
      store(sums, load(sums) + sum0);
      store(sums + lanes, load(sums + lanes) + sum1);
    }
  }

  // sums [panels of the range, rows, kWidth]. What cannot be loaded as it lies goes through a copy, zero past the last token.
  template <class Source>
  void add_tokens(int64_t t, const T* a, const Source* b, int64_t n0, int64_t n1, T* sums) const {
    const int64_t stride = panels.b.stride, tokens = smaller(kHeldTokens, panels.tokens - t);
    T copy[kHeldTokens * kWidth] = {};
    b += t * stride;
    for (int64_t n = n0; n < n1; n += kWidth, sums += rows * kWidth) {
      if constexpr (sizeof(Source) == sizeof(T))
        if (tokens == kHeldTokens && n1 - n >= kWidth) {
          add_products(a, b + n, stride, sums);
          continue;
        }
      for (int64_t i = 0; i < tokens; ++i)
        n1 - n >= kWidth ? convert_run(copy + i * kWidth, b + i * stride + n, kWidth)
                         : convert_run(copy + i * kWidth, b + i * stride + n, n1 - n);
      add_products(a, copy, kWidth, sums);
    }
  }

  template <class Source>
  void compute_range(int64_t n0, int64_t n1, T* sums) const {
    T packed[kSkinnyRows * kHeldTokens];
    for (int64_t i = 0; i < rows * range; ++i) sums[i] = 0;
    for (int64_t t = 0; t < panels.tokens; t += kHeldTokens) {
      pack_tokens(t, static_cast<const Source*>(panels.a.data), packed);
      add_tokens(t, packed, static_cast<const Source*>(panels.b.data), n0, n1, sums);
    }
  }

  void compute_range(int64_t n0, int64_t n1, T* sums) const {
    with_dtype(panels.dtype, [&](auto s) {
      using Source = decltype(s);
      if constexpr ((sizeof(Source) == sizeof(double)) == (sizeof(T) == sizeof(double))) compute_range<Source>(n0, n1, sums);
    });
  }

  void store_range(int64_t n0, int64_t n1, const T* sums, void* values, DType values_dtype, bool accumulate) const {
    with_dtype(values_dtype, [&](auto v) {
      for (int64_t n = n0; n < n1; n += kWidth)
        store_tile(*panels.layout, Tile{0, 0, rows, n, smaller(n + kWidth, n1)}, sums + (n - n0) * rows, kWidth,
                   static_cast<decltype(v)*>(values), accumulate);
    });
  }
};

bool is_skinny(const Layout& layout) { return (layout.kind == kRows || layout.kind == kColumns) && layout.n <= kSkinnyRows; }

template <class T>
void skinny_gemm(const PanelProblem& panels, void* values, DType values_dtype, bool accumulate, int threads) {
  const SkinnyProblem<T> problem(panels, threads);
  const int64_t ranges = divide_up(problem.columns, problem.range), sums_bytes = Pieces::bytes<T>(problem.range * problem.rows);
  const int team = static_cast<int>(smaller(threads, ranges));
  const Workspace workspace(team * sums_bytes);
  char* all_sums = workspace.pieces().cut<char>(team * sums_bytes);
  int64_t next = 0;
  parallel(team, [&](int thread, int) {
    T* sums = reinterpret_cast<T*>(all_sums + thread * sums_bytes);
    for (int64_t i; (i = take(next)) < ranges;) {
      const int64_t n0 = i * problem.range, n1 = smaller(n0 + problem.range, problem.columns);
      problem.compute_range(n0, n1, sums);
      problem.store_range(n0, n1, sums, values, values_dtype, accumulate);
    }
  });
}

}  // namespace
}  // namespace sparse_ft
