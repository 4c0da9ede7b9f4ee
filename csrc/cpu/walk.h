// Visits entries [begin, end) of values in order, in pieces as long as the layout allows. The visitor has five methods:
//   run(k, position, count)            values k … are matrix entries position …
//   indexed(k, base, index, count)     value k + i is matrix entry base + index[i]
//   entries(k, first, index, count)    value k + i is matrix entry index[i] - first, which the visitor must see to be one
//   padding(k, count)                  values k … hang over the edge of the matrix
//   soon(position, count)              about to visit matrix entries position …, a hint that may point past the matrix
// It is `position` of layout.h without a division for each entry.
#pragma once

#include <limits>
#include <type_traits>

#include "../layout.h"

namespace sparse_ft {

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Whether `count` numbers lie in [first, first + size).
template <class Index>
static inline bool all_inside(const Index* index, int64_t count, int64_t first, int64_t size) {
  using Bits = std::make_unsigned_t<Index>;
  const int64_t last = smaller(first + size - 1, std::numeric_limits<Index>::max());
  if (first > last) return count == 0;
  Bits farthest = 0;  // of those behind the first: what is in front of it is far behind it, without a sign
  for (int64_t i = 0; i < count; ++i) {
    const Bits behind = static_cast<Bits>(index[i]) - static_cast<Bits>(first);
    farthest = behind > farthest ? behind : farthest;
  }
  return farthest <= static_cast<Bits>(last - first);
}

template <class Index>
static inline bool inside_of(const Layout& layout, const Index* index) {
  switch (layout.kind) {
    case kRows: return all_inside(index, layout.n, 0, layout.rows);
    case kColumns: return all_inside(index, layout.n, 0, layout.columns);
    case kEntries: return all_inside(index, layout.n, layout.first, layout.rows * layout.columns);
    case kAll: return true;
    case kBlocks: break;
  }
  const int64_t down = (layout.rows + layout.block_h - 1) / layout.block_h, across = (layout.columns + layout.block_w - 1) / layout.block_w;
  bool inside = true;
  for (int64_t i = 0; i < layout.n; ++i)
    inside &= index[2 * i] >= 0 && index[2 * i] < down && index[2 * i + 1] >= 0 && index[2 * i + 1] < across;
  return inside;
}

// Whether the index names rows, columns, blocks or entries that the matrix has. An index can be edited after it was checked, and what is
// walked without a look at it writes anywhere. Visitors look at single entries as they come to them: another pass over many takes a
// quarter of the time of a gather. Of all else there are few, and the caller looks at them.
static inline bool inside(const Layout& layout) {
  return layout.index_bits == 64 ? inside_of(layout, static_cast<const int64_t*>(layout.index))
                                 : inside_of(layout, static_cast<const int32_t*>(layout.index));
}

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
    case kEntries: return visitor.entries(begin, layout.first, index + begin, end - begin);
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
