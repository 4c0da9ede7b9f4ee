// Single entries. index: [nnz] of row * columns + column. values: [nnz].
#pragma once

#include "base.h"

namespace sparse_ft {
namespace {

struct EntriesOfMatrix : AnyStructure {
  static constexpr const char* kName = "entries";
  static constexpr bool kFlat = true, kListed = true, kScattered = true;

  SFT_HD int64_t count(const Layout& layout) { return layout.n; }
  SFT_HD int64_t row_length(const Layout& layout) { return layout.n; }
  SFT_HD void start_row(const Layout&, int64_t, Cursor&) {}
  SFT_HD void next_row(const Layout&, Cursor&) {}
  SFT_HD int64_t position(const Layout& layout, const Cursor& at) {
    return index_at(layout, at.inner);
  }
  SFT_HD bool in_one_run(const Layout&, const Cursor&, int64_t) { return false; }

  template <class Index>
  static bool names_inside(const Layout& layout, const Index* index) {
    return all_inside(index, layout.n, layout.first, layout.rows * layout.columns);
  }

  template <class Index, class Visitor>
  static void walk(const Layout& layout, const Index* index, int64_t begin, int64_t end,
                   Visitor& visitor) {
    visitor.entries(begin, layout.first, index + begin, end - begin);
  }
};

}  // namespace
}  // namespace sparse_ft
