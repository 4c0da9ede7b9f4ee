// Tiles of the matrix, of one size and on one grid. index: [n, 2] of (block_row, block_col). values:
// [n, bh, bw]; where a block hangs over the edge of the matrix they are padding.
#pragma once

#include "base.h"

namespace sparse_ft {
namespace {

struct BlocksOfMatrix : AnyStructure {
  static constexpr const char* kName = "blocks";
  static constexpr bool kPairs = true, kHasPanels = true, kTiles = true;

  SFT_HD int64_t count(const Layout& layout) { return layout.n * layout.block_h * layout.block_w; }
  SFT_HD int64_t row_length(const Layout& layout) { return layout.block_w; }
  SFT_HD void start_row(const Layout& layout, int64_t row, Cursor& at) {
    at.outer = row / layout.block_h;
    at.middle = row - at.outer * layout.block_h;
    find_row(layout, at);
  }
  SFT_HD void next_row(const Layout& layout, Cursor& at) {
    if (++at.middle == layout.block_h) {
      at.middle = 0;
      ++at.outer;
    }
    find_row(layout, at);
  }
  SFT_HD void find_row(const Layout& layout, Cursor& at) {
    const int64_t row = index_at(layout, 2 * at.outer) * layout.block_h + at.middle;
    const int64_t column = index_at(layout, 2 * at.outer + 1) * layout.block_w;
    at.base = row * layout.columns + column;
    at.inside = row < layout.rows ? layout.columns - column : 0;
  }
  SFT_HD int64_t position(const Layout&, const Cursor& at) {
    return at.inner < at.inside ? at.base + at.inner : kPadding;
  }
  SFT_HD bool in_one_run(const Layout& layout, const Cursor& at, int64_t count) {
    return at.inner + count <= layout.block_w && at.inner + count <= at.inside;
  }

  template <class Index>
  static bool names_inside(const Layout& layout, const Index* index) {
    const int64_t down = (layout.rows + layout.block_h - 1) / layout.block_h;
    const int64_t across = (layout.columns + layout.block_w - 1) / layout.block_w;
    bool inside = true;
    for (int64_t i = 0; i < layout.n; ++i) {
      inside &= index[2 * i] >= 0 && index[2 * i] < down;
      inside &= index[2 * i + 1] >= 0 && index[2 * i + 1] < across;
    }
    return inside;
  }

  static constexpr int64_t kRowsAhead = 8;  // of a block: 4 and 16 measure a little worse

  // Rows of a block lie a row of the matrix apart, further than the hardware foresees.
  template <class Index, class Visitor>
  static void announce_row(const Layout& layout, const Index* index, int64_t block, int64_t r,
                           Visitor& visitor) {
    if (r >= layout.block_h) {
      ++block;
      r = smaller(r - layout.block_h, layout.block_h - 1);
    }
    if (block >= layout.n) return;
    const int64_t row = static_cast<int64_t>(index[2 * block]) * layout.block_h + r;
    const int64_t column = static_cast<int64_t>(index[2 * block + 1]) * layout.block_w;
    visitor.soon(row * layout.columns + column, layout.block_w);
  }

  template <class Index, class Visitor>
  static void walk(const Layout& layout, const Index* index, int64_t begin, int64_t end,
                   Visitor& visitor) {
    const int64_t area = layout.block_h * layout.block_w;
    int64_t block = begin / area;
    int64_t r = begin % area / layout.block_w, c = begin % area % layout.block_w;
    for (int64_t k = begin; k < end; ++block, r = 0) {
      const int64_t row0 = static_cast<int64_t>(index[2 * block]) * layout.block_h;
      const int64_t column0 = static_cast<int64_t>(index[2 * block + 1]) * layout.block_w;
      const int64_t width = larger(smaller(layout.block_w, layout.columns - column0), 0);
      for (; r < layout.block_h && k < end; ++r, c = 0) {
        announce_row(layout, index, block, r + kRowsAhead, visitor);
        const int64_t count = smaller(layout.block_w - c, end - k);
        const int64_t inside = row0 + r < layout.rows ? smaller(larger(width - c, 0), count) : 0;
        if (inside > 0) visitor.run(k, (row0 + r) * layout.columns + column0 + c, inside);
        if (inside < count) visitor.padding(k + inside, count - inside);
        k += count;
      }
    }
  }

  // A group is a block row: its blocks lie side by side.
  template <class F>
  static void groups(const Layout& layout, F& f) {
    for (int64_t block = 0, next; block < layout.n; block = next) {
      const int64_t block_row = index_at(layout, 2 * block);
      for (next = block + 1; next < layout.n && index_at(layout, 2 * next) == block_row;) ++next;
      f(Group{block, layout.block_h, (next - block) * layout.block_w, next - block, layout.n});
    }
  }
  static int64_t row(const Layout& layout, int64_t first, int64_t m) {
    return smaller(index_at(layout, 2 * first) * layout.block_h + m, layout.rows - 1);
  }
  static int64_t column(const Layout& layout, int64_t first, int64_t n) {
    const int64_t block = first + n / layout.block_w, c = n % layout.block_w;
    return smaller(index_at(layout, 2 * block + 1) * layout.block_w + c, layout.columns - 1);
  }
  static Run run_at(const Layout& layout, int64_t first, int64_t m, int64_t n) {
    const int64_t block = first + n / layout.block_w, c = n % layout.block_w;
    const int64_t row = index_at(layout, 2 * block) * layout.block_h + m;
    const int64_t left = layout.columns - index_at(layout, 2 * block + 1) * layout.block_w - c;
    const int64_t count = layout.block_w - c;
    const int64_t inside = row < layout.rows ? larger(smaller(count, left), 0) : 0;
    return Run{(block * layout.block_h + m) * layout.block_w + c, count, inside};
  }
};

}  // namespace
}  // namespace sparse_ft
