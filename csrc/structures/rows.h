// Whole rows of the matrix. index: [R] row numbers. values: [R, columns].
#pragma once

#include "base.h"

namespace sparse_ft {
namespace {

struct RowsOfMatrix : AnyStructure {
  static constexpr const char* kName = "rows";
  static constexpr bool kHasPanels = true, kLines = true;
  // At T = in = out = 2048, fp32, AVX2, one thread, 5 % of the rows take 11.9 ms instead of 12.4 and
  // 25 % 48.7 instead of 55.7.
  static constexpr int64_t kPackedFrom = 64;

  SFT_HD int64_t count(const Layout& layout) { return layout.n * layout.columns; }
  SFT_HD int64_t row_length(const Layout& layout) { return layout.columns; }
  SFT_HD void start_row(const Layout& layout, int64_t row, Cursor& at) {
    at.outer = row;
    at.base = index_at(layout, row) * layout.columns;
  }
  SFT_HD void next_row(const Layout& layout, Cursor& at) { start_row(layout, at.outer + 1, at); }
  SFT_HD int64_t position(const Layout&, const Cursor& at) { return at.base + at.inner; }
  SFT_HD bool in_one_run(const Layout& layout, const Cursor& at, int64_t count) {
    return at.inner + count <= layout.columns;
  }

  template <class Index>
  static bool names_inside(const Layout& layout, const Index* index) {
    return all_inside(index, layout.n, 0, layout.rows);
  }

  template <class Index, class Visitor>
  static void walk(const Layout& layout, const Index* index, int64_t begin, int64_t end,
                   Visitor& visitor) {
    int64_t row = begin / layout.columns, column = begin % layout.columns;
    for (int64_t k = begin; k < end; ++row, column = 0) {
      const int64_t count = smaller(layout.columns - column, end - k);
      visitor.run(k, static_cast<int64_t>(index[row]) * layout.columns + column, count);
      k += count;
    }
  }

  template <class F>
  static void groups(const Layout& layout, F& f) {
    f(Group{0, layout.n, layout.columns, 1, 1});
  }
  static int64_t row(const Layout& layout, int64_t, int64_t m) { return index_at(layout, m); }
  static Run run_at(const Layout& layout, int64_t, int64_t m, int64_t n) {
    return Run{m * layout.columns + n, layout.columns - n, layout.columns - n};
  }
};

}  // namespace
}  // namespace sparse_ft
