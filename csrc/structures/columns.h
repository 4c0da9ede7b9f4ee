// Whole columns of the matrix. index: [C] column numbers. values: [rows, C].
#pragma once

#include "base.h"

namespace sparse_ft {
namespace {

struct ColumnsOfMatrix : AnyStructure {
  static constexpr const char* kName = "columns";
  static constexpr bool kScattered = true, kHasPanels = true, kByColumns = true, kLines = true;
  // As for rows: 5 % of the columns take 13.6 ms instead of 12.9, 10 % 22.7 instead of 25.
  static constexpr int64_t kPackedFrom = 160;

  SFT_HD int64_t count(const Layout& layout) { return layout.rows * layout.n; }
  SFT_HD int64_t row_length(const Layout& layout) { return layout.n; }
  SFT_HD void start_row(const Layout& layout, int64_t row, Cursor& at) {
    at.outer = row;
    at.base = row * layout.columns;
  }
  SFT_HD void next_row(const Layout& layout, Cursor& at) { start_row(layout, at.outer + 1, at); }
  SFT_HD int64_t position(const Layout& layout, const Cursor& at) {
    return at.base + index_at(layout, at.inner);
  }
  SFT_HD bool in_one_run(const Layout&, const Cursor&, int64_t) { return false; }

  template <class Index>
  static bool names_inside(const Layout& layout, const Index* index) {
    return all_inside(index, layout.n, 0, layout.columns);
  }

  template <class Index, class Visitor>
  static void walk(const Layout& layout, const Index* index, int64_t begin, int64_t end,
                   Visitor& visitor) {
    int64_t row = begin / layout.n, i = begin % layout.n;
    for (int64_t k = begin; k < end; ++row, i = 0) {
      const int64_t count = smaller(layout.n - i, end - k);
      visitor.indexed(k, row * layout.columns, index + i, count);
      k += count;
    }
  }

  template <class F>
  static void groups(const Layout& layout, F& f) {
    f(Group{0, layout.rows, layout.n, 1, 1});
  }
  static int64_t column(const Layout& layout, int64_t, int64_t n) { return index_at(layout, n); }
  static Run run_at(const Layout& layout, int64_t, int64_t m, int64_t n) {
    return Run{m * layout.n + n, layout.n - n, layout.n - n};
  }
};

}  // namespace
}  // namespace sparse_ft
