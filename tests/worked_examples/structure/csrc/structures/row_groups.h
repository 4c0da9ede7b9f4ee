// Groups of block_h neighbouring rows. index: [n] group numbers. values: [n, block_h, columns].
#pragma once

#include "base.h"

namespace sparse_ft {
namespace {

struct RowGroupsOfMatrix : AnyStructure {
  static constexpr const char* kName = "row_groups";
  static constexpr bool kHasPanels = true, kLines = true;
  static constexpr int64_t kPackedFrom = 64;  // as for rows

  SFT_HD int64_t count(const Layout& layout) { return layout.n * layout.block_h * layout.columns; }
  SFT_HD int64_t row_length(const Layout& layout) { return layout.columns; }
  SFT_HD void start_row(const Layout& layout, int64_t row, Cursor& at) {
    const int64_t group = row / layout.block_h;
    at.outer = row;
    at.base = (index_at(layout, group) * layout.block_h + row % layout.block_h) * layout.columns;
  }
  SFT_HD void next_row(const Layout& layout, Cursor& at) { start_row(layout, at.outer + 1, at); }
  SFT_HD int64_t position(const Layout&, const Cursor& at) { return at.base + at.inner; }
  SFT_HD bool in_one_run(const Layout& layout, const Cursor& at, int64_t count) {
    return at.inner + count <= layout.columns;
  }

  template <class Index>
  static bool names_inside(const Layout& layout, const Index* index) {
    return all_inside(index, layout.n, 0, layout.rows / layout.block_h);
  }

  // The rows of a group adjoin in the matrix.
  template <class Index, class Visitor>
  static void walk(const Layout& layout, const Index* index, int64_t begin, int64_t end,
                   Visitor& visitor) {
    const int64_t area = layout.block_h * layout.columns;
    for (int64_t k = begin; k < end;) {
      const int64_t group = k / area, inner = k % area;
      const int64_t count = smaller(area - inner, end - k);
      visitor.run(k, static_cast<int64_t>(index[group]) * area + inner, count);
      k += count;
    }
  }

  // The weight gradient is one product, of the rows that are chosen.
  template <class F>
  static void groups(const Layout& layout, F& f) {
    f(Group{0, layout.n * layout.block_h, layout.columns, 1, 1});
  }
  static int64_t row(const Layout& layout, int64_t, int64_t m) {
    return index_at(layout, m / layout.block_h) * layout.block_h + m % layout.block_h;
  }
  static Run run_at(const Layout& layout, int64_t, int64_t m, int64_t n) {
    return Run{m * layout.columns + n, layout.columns - n, layout.columns - n};
  }
};

}  // namespace
}  // namespace sparse_ft
