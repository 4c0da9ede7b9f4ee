// What every structure is made of: a layout, a cursor that walks it, and what visits its entries.
//
// A structure is a struct of one file, named in the table of layout.h. It has
//   kName                         as Python calls the kind
// and what differs from `AnyStructure` of
//   kFlat                         values are one row: a cursor counts them, and nothing else
//   kListed                       flat, and value k is matrix entry index[k], which nobody checked
//   kScattered                    neighbours among the values lie apart in the matrix
//   kPairs                        the index is [n, 2], else [n]
// and
//   count(layout)                 of values
//   row_length(layout)            of the rows that values consist of
//   start_row(layout, row, at)    goes to row number `row` of values
//   next_row(layout, at)          from the end of a row to the next one
//   position(layout, at)          in the matrix, counted row-major; kPadding for what hangs over it
//   in_one_run(layout, at, n)     whether the n entries from here on adjoin in the matrix for sure
//   names_inside(layout, index)   whether the index names only what the matrix has
//   walk(layout, index, begin, end, visitor)   entries [begin, end) of values in order
//
// The weight gradient of each value is a dot product of its own (cpu/entry_dots.h), unless values
// are made of groups, each a product of some rows and some columns of the matrix. Then a structure
// also has
//   kHasPanels                    true: the products are computed from panels (cpu/panel_gemm.h)
//   kByColumns                    columns are chosen, and all rows are there
//   kLines                        one group, of whole rows or whole columns
//   kPackedFrom                   so many lines are worth packing both operands once, where values
//                                 are one group, row-major (cpu/matrix_panels.h)
//   kTiles                        value [i, m, n] lies in tile index[i] of block_h x block_w
//                                 (cpu/block_panels.h)
//   groups(layout, f)             f(group) for each group
//   row(layout, first, m)         the matrix row of row m of the group that begins with `first`;
//                                 the last one for what hangs over the matrix
//   column(layout, first, n)      likewise
//   run_at(layout, first, m, n)   where the values of row m of a group lie, from its column n on
//
// A visitor has five methods:
//   run(k, position, count)            values k … are matrix entries position …
//   indexed(k, base, index, count)     value k + i is matrix entry base + index[i]
//   entries(k, first, index, count)    value k + i is matrix entry index[i] - first, which the
//                                      visitor must see to be one
//   padding(k, count)                  values k … hang over the edge of the matrix
//   soon(position, count)              about to visit matrix entries position …, a hint that may
//                                      point past the matrix
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "../dtype.h"

namespace sparse_ft {

enum Kind : int;  // the table in layout.h

struct Layout {
  Kind kind;
  const void* index;
  int index_bits;  // 32 or 64
  int64_t n;       // index.size(0)
  int64_t block_h, block_w;
  int64_t rows, columns;  // the shape of the matrix
  // Entries: the position that the index has for the matrix's first entry, where it counts a larger
  // matrix.
  int64_t first;
};

template <class Index>
SFT_HD int64_t read_index(const void* index, int64_t i) {
#ifdef __CUDA_ARCH__
  return __ldg(static_cast<const Index*>(index) + i);
#else
  return static_cast<const Index*>(index)[i];
#endif
}

SFT_HD int64_t index_at(const Layout& layout, int64_t i) {
  return layout.index_bits == 64 ? read_index<int64_t>(layout.index, i)
                                 : read_index<int32_t>(layout.index, i);
}

constexpr int64_t kPadding = -1;

// Walks entries that follow one another: divisions only where it starts, the index read only where it
// must be. Of values [outer, middle, inner]; what a structure does not need stays 0.
struct Cursor {
  int64_t base;  // where this row of values begins in the matrix
  int64_t outer, middle, inner;
  int64_t inside;  // how many entries of this row of values lie in the matrix, where some may not
};

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Some of the values: all pairs of `rows` rows and `columns` columns.
struct Group {
  int64_t first;  // what the structure calls the group by
  int64_t rows, columns;
  int64_t share, of;  // how much of the work it is: share / of
};

// Values that adjoin, of one row of a group.
struct Run {
  int64_t at;      // the first of them, among the values
  int64_t count;
  int64_t inside;  // how many of them the matrix has; the rest is padding
};

// What a structure does not say otherwise.
struct AnyStructure {
  static constexpr bool kFlat = false, kListed = false, kScattered = false, kPairs = false;
  static constexpr bool kHasPanels = false, kByColumns = false, kLines = false, kTiles = false;
  static constexpr int64_t kPackedFrom = std::numeric_limits<int64_t>::max();

  template <class F>
  static void groups(const Layout&, F&) {}
  static int64_t row(const Layout&, int64_t, int64_t m) { return m; }
  static int64_t column(const Layout&, int64_t, int64_t n) { return n; }
  static Run run_at(const Layout&, int64_t, int64_t, int64_t) { return Run{}; }
};

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

}  // namespace sparse_ft
