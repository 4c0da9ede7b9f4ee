// Every entry, in order: no index. values: [rows, columns].
#pragma once

#include "base.h"

namespace sparse_ft {
namespace {

struct AllOfMatrix : AnyStructure {
  static constexpr const char* kName = "all";
  static constexpr bool kFlat = true, kHasPanels = true;
  static constexpr int64_t kPackedFrom = 0;

  SFT_HD int64_t count(const Layout& layout) { return layout.rows * layout.columns; }
  SFT_HD int64_t row_length(const Layout& layout) { return count(layout); }
  SFT_HD void start_row(const Layout&, int64_t, Cursor&) {}
  SFT_HD void next_row(const Layout&, Cursor&) {}
  SFT_HD int64_t position(const Layout&, const Cursor& at) { return at.inner; }
  SFT_HD bool in_one_run(const Layout&, const Cursor&, int64_t) { return true; }

  template <class Index>
  static bool names_inside(const Layout&, const Index*) {
    return true;
  }

  template <class Index, class Visitor>
  static void walk(const Layout&, const Index*, int64_t begin, int64_t end, Visitor& visitor) {
    visitor.run(begin, begin, end - begin);
  }

  template <class F>
  static void groups(const Layout& layout, F& f) {
    f(Group{0, layout.rows, layout.columns, 1, 1});
  }
  static Run run_at(const Layout& layout, int64_t, int64_t m, int64_t n) {
    return Run{m * layout.columns + n, layout.columns - n, layout.columns - n};
  }
};

}  // namespace
}  // namespace sparse_ft
