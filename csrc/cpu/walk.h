// Visits entries [begin, end) of values in order, in pieces as long as the layout allows. The visitor has four methods:
//   run(k, position, count)            values k … are matrix entries position …
//   indexed(k, base, index, count)     value k + i is matrix entry base + index[i]
//   padding(k, count)                  values k … hang over the edge of the matrix
//   soon(position, count)              about to visit matrix entries position …, a hint that may point past the matrix
// It is `position` of layout.h without a division for each entry.
#pragma once

#include "../layout.h"

namespace sparse_ft {

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

template <class Index, class Visitor>
static inline void walk_rows(const Layout& layout, const Index* index, int64_t begin, int64_t end, Visitor& visitor) {
  int64_t row = begin / layout.columns, column = begin % layout.columns;
  for (int64_t k = begin; k < end; ++row, column = 0) {
    const int64_t count = smaller(layout.columns - column, end - k);
    visitor.run(k, static_cast<int64_t>(index[row]) * layout.columns + column, count);
    k += count;
  }
}

template <class Index, class Visitor>
static inline void walk_columns(const Layout& layout, const Index* index, int64_t begin, int64_t end, Visitor& visitor) {
  int64_t row = begin / layout.n, i = begin % layout.n;
  for (int64_t k = begin; k < end; ++row, i = 0) {
    const int64_t count = smaller(layout.n - i, end - k);
    visitor.indexed(k, row * layout.columns, index + i, count);
    k += count;
  }
}

constexpr int64_t kRowsAhead = 8;  // of a block: 4 and 16 measure a little worse

// Rows of a block lie a row of the matrix apart, further than the hardware foresees.
template <class Index, class Visitor>
static inline void announce_row(const Layout& layout, const Index* index, int64_t block, int64_t r, Visitor& visitor) {
  if (r >= layout.block_h) ++block, r = smaller(r - layout.block_h, layout.block_h - 1);
  if (block >= layout.n) return;
  const int64_t row = static_cast<int64_t>(index[2 * block]) * layout.block_h + r;
  visitor.soon(row * layout.columns + static_cast<int64_t>(index[2 * block + 1]) * layout.block_w, layout.block_w);
}

template <class Index, class Visitor>
static inline void walk_blocks(const Layout& layout, const Index* index, int64_t begin, int64_t end, Visitor& visitor) {
  const int64_t area = layout.block_h * layout.block_w;
  int64_t block = begin / area, r = begin % area / layout.block_w, c = begin % area % layout.block_w;
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

template <class Index, class Visitor>
static inline void walk_indexed(const Layout& layout, const Index* index, int64_t begin, int64_t end, Visitor& visitor) {
  switch (layout.kind) {
    case kRows: return walk_rows(layout, index, begin, end, visitor);
    case kColumns: return walk_columns(layout, index, begin, end, visitor);
    case kBlocks: return walk_blocks(layout, index, begin, end, visitor);
    case kEntries: return visitor.indexed(begin, 0, index + begin, end - begin);
    case kAll: return visitor.run(begin, begin, end - begin);
  }
}

template <class Visitor>
static inline void walk(const Layout& layout, int64_t begin, int64_t end, Visitor&& visitor) {
  if (begin >= end) return;
  if (layout.index_bits == 64)
    walk_indexed(layout, static_cast<const int64_t*>(layout.index), begin, end, visitor);
  else
    walk_indexed(layout, static_cast<const int32_t*>(layout.index), begin, end, visitor);
}

}  // namespace sparse_ft
