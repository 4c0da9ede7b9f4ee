// result[m, n] = sum over tokens of a[t, a_column(m)] * b[t, n], for so few selected rows or columns that packing b would cost as
// much as the products. b is read once, where it lies: registers hold two vectors of each of some tokens, and the result passes by.
// Tokens are cut into segments, the same for any team, with sums of their own that are added up in order: two threads read both
// operands in long runs, and the chosen columns of a once. One thread works one segment of one range of b, its tokens in order.
#pragma once

#include "panel_gemm.h"
#include "phases.h"

namespace sparse_ft {
namespace {

constexpr int kHeldTokens = kTileRows;
// At T = in = out = 2048, fp32, AVX2, one thread: 0.7 ms instead of 1.2 for 4 rows, 2.3 instead of 3.0 for 20, 3.4 instead of 3.8
// for 30; the two meet at 40.
constexpr int64_t kSkinnyRows = 32;
constexpr int64_t kSkinnyBytes = 256 << 10;  // of a range of the result: it stays in the second-level cache (half of it is slower)
// Of a, that are fetched early all at once. More would wait for one another, and b for them; few cost less than cutting the sweep over b:
// 8 rows take 1.06 ms instead of 1.17, 20 rows on two threads 1.7 instead of 1.8.
constexpr int64_t kFetchedRows = 12;
constexpr int64_t kSkinnySegments = 2;  // of tokens; two threads, 20 rows: 1.6 ms instead of 1.8 with one; four are slower

template <class T>
struct SkinnyProblem {
  static constexpr int kWidth = kTileColumns<T>;
  const PanelProblem& panels;
  int64_t rows, columns;       // of the result
  int64_t range;               // of columns, a multiple of kWidth
  int64_t segment;             // of tokens, a multiple of kHeldTokens
  int64_t where[kSkinnyRows];  // the columns of a

  SkinnyProblem(const PanelProblem& panels, int threads) : panels(panels) {
    const Group group = only_group(*panels.layout);
    rows = panels.by_columns ? group.columns : group.rows;
    columns = panels.by_columns ? group.rows : group.columns;
    segment = round_up(divide_up(panels.tokens, kSkinnySegments), kHeldTokens);
    int64_t ranges = divide_up(columns, kSkinnyBytes / (rows * static_cast<int64_t>(sizeof(T))));
    while (ranges * segments() % threads) ++ranges;  // as many units for one thread as for another
    range = round_up(divide_up(columns, ranges), kWidth);
    for (int64_t m = 0; m < rows; ++m) where[m] = a_column(panels, 0, m);
  }
  int64_t segments() const { return divide_up(panels.tokens, segment); }
  int64_t ranges() const { return divide_up(columns, range); }
  int64_t sum_count(int64_t of_ranges) const { return smaller(of_ranges * range, round_up(columns, kWidth)) * rows; }

  template <class Source>
  void fetch(const Source* row) const {
    for (int64_t m = 0; m < rows; ++m) __builtin_prefetch(row + where[m]);
  }

  // packed [rows, kHeldTokens], zero past the last token
  template <class Source>
  void pack_tokens(int64_t t, int64_t end, const Source* a, T* packed) const {
    for (int i = 0; i < kHeldTokens; ++i) {
      const Source* row = a + smaller(t + i, end - 1) * panels.a.stride;
      if (rows <= kFetchedRows) fetch(a + smaller(t + i + kHeldTokens, end - 1) * panels.a.stride);
      for (int64_t m = 0; m < rows; ++m) packed[m * kHeldTokens + i] = t + i < end ? convert(row[where[m]], Tag<T>()) : T{};
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
      Vec<T> sum0 = load(sums), sum1 = load(sums + lanes);
#pragma GCC unroll 16
      for (int t = 0; t < kHeldTokens; ++t) {
        sum0 += a[t] * held[t][0];
        sum1 += a[t] * held[t][1];
      }
      store(sums, sum0);
      store(sums + lanes, sum1);
    }
  }

  // sums [panels, rows, kWidth], for the panels of columns [n0, n1). What cannot be loaded as it lies goes through a copy, zero past
  // the last token.
  template <class Source>
  void add_panels(int64_t tokens, const T* a, const Source* b, int64_t n0, int64_t n1, T* sums) const {
    const int64_t stride = panels.b.stride;
    T copy[kHeldTokens * kWidth] = {};
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

  // sums [panels of the range, rows, kWidth]. What the next tokens need of a is fetched a token at a time, between parts of
  // the sweep, or all at once by pack_tokens.
  template <class Source>
  void compute_unit(int64_t t0, int64_t t1, int64_t n0, int64_t n1, T* sums) const {
    const Source *a = static_cast<const Source*>(panels.a.data), *b = static_cast<const Source*>(panels.b.data);
    const int64_t part = rows <= kFetchedRows ? range : round_up(divide_up(n1 - n0, kHeldTokens), kWidth);
    T packed[kSkinnyRows * kHeldTokens];
    memset(sums, 0, rows * round_up(n1 - n0, kWidth) * sizeof(T));
    for (int64_t t = t0; t < t1; t += kHeldTokens) {
      pack_tokens(t, t1, a, packed);
      const Source* later = a + smaller(t + kHeldTokens, t1 - 1) * panels.a.stride;
      for (int64_t n = n0, i = t + kHeldTokens; n < n1; n += part, ++i) {
        if (rows > kFetchedRows) fetch(later);
        if (i + 1 < t1) later += panels.a.stride;
        add_panels(smaller(kHeldTokens, t1 - t), packed, b + t * panels.b.stride, n, smaller(n + part, n1), sums + (n - n0) * rows);
      }
    }
  }

  // sums [panels of the range, rows, kWidth]
  void compute_unit(int64_t which_segment, int64_t which_range, T* sums) const {
    const int64_t t0 = which_segment * segment, n0 = which_range * range;
    with_dtype(panels.dtype, [&](auto d) {
      using Source = decltype(d);
      if constexpr ((sizeof(Source) == sizeof(double)) == (sizeof(T) == sizeof(double)))
        compute_unit<Source>(t0, smaller(t0 + segment, panels.tokens), n0, smaller(n0 + range, columns), sums);
    });
  }

  // Of the panel at column n: segments, `between` apart, in their order.
  void store_panel(int64_t n, T* sums, int64_t between, void* values, DType values_dtype, bool accumulate) const {
    for (int64_t s = 1; s < segments(); ++s)
      for (int64_t i = 0; i < rows * kWidth; ++i) sums[i] += sums[s * between + i];
    with_dtype(values_dtype, [&](auto v) {
      store_tile(panels, Tile{0, 0, rows, n, smaller(n + kWidth, columns)}, sums, kWidth,
                 static_cast<decltype(v)*>(values), accumulate);
    });
  }
};

bool is_skinny(const Layout& layout) { return has_lines(layout.kind) && lines_of(layout) <= kSkinnyRows; }

// Some ranges at a time, as many as give each thread a unit: so the sums of a wide matrix need no memory of its size.
template <class T>
void skinny_gemm(const PanelProblem& panels, void* values, DType values_dtype, bool accumulate, int threads) {
  const SkinnyProblem<T> problem(panels, threads);
  const int64_t segments = problem.segments(), ranges = problem.ranges(), together = smaller(ranges, divide_up(threads, segments));
  const int64_t sum_count = problem.sum_count(together);  // [segments, panels, rows, kWidth]
  const Workspace workspace(Pieces::bytes<T>(segments * sum_count));
  T* sums = workspace.pieces().cut<T>(0);
  in_phases(ranges, together, threads, [&](int64_t first, int64_t count, const Phase& compute, const Phase& store, int) {
    const int64_t n0 = first * problem.range, n1 = smaller(n0 + count * problem.range, problem.columns);
    compute.share(segments * count, [&](int64_t unit) {
      const int64_t segment = unit / count, range = unit % count;
      problem.compute_unit(segment, first + range, sums + segment * sum_count + range * problem.range * problem.rows);
    });
    store.share(divide_up(n1 - n0, problem.kWidth), [&](int64_t panel) {
      const int64_t n = panel * problem.kWidth;
      problem.store_panel(n0 + n, sums + n * problem.rows, sum_count, values, values_dtype, accumulate);
    });
  });
}

}  // namespace
}  // namespace sparse_ft
