// Where entry k of `values` sits in the matrix, for every kind of selection. Shared by host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparse_ft {

enum Kind : int { kRows = 0, kColumns = 1, kBlocks = 2, kEntries = 3, kAll = 4 };
constexpr const char* kKindNames[] = {"rows", "columns", "blocks", "entries", "all"};

struct Layout {
  Kind kind;
  const void* index;  // rows [R], columns [C], blocks [n, 2] of (block_row, block_col), entries [nnz] of row * columns + column
  int index_bits;     // 32 or 64
  int64_t n;          // index.size(0)
  int64_t block_h, block_w;
  int64_t rows, columns;  // the shape of the matrix
  int64_t first;          // entries: the position that the index has for the matrix's first entry, where it counts a larger matrix
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
  return layout.index_bits == 64 ? read_index<int64_t>(layout.index, i) : read_index<int32_t>(layout.index, i);
}

SFT_HD int64_t values_count(const Layout& layout) {
  switch (layout.kind) {
    case kRows: return layout.n * layout.columns;
    case kColumns: return layout.rows * layout.n;
    case kBlocks: return layout.n * layout.block_h * layout.block_w;
    case kEntries: return layout.n;
    case kAll: return layout.rows * layout.columns;
  }
  return 0;
}

constexpr int64_t kPadding = -1;

// Walks entries that follow one another: divisions only where it starts, the index read only where it must be.
struct Cursor {
  int64_t base;                  // position of the first entry of this row of values; columns: of the row of the matrix
  int64_t outer, middle, inner;  // where in values: rows [R, columns], columns [rows, C], blocks [n, bh, bw], else [count]
  int64_t inside;                // blocks: how many entries of this row of values lie in the matrix
};

SFT_HD void find_base(const Layout& layout, Cursor& at) {
  if (layout.kind == kRows) {
    at.base = index_at(layout, at.outer) * layout.columns;
  } else if (layout.kind == kColumns) {
    at.base = at.outer * layout.columns;
  } else if (layout.kind == kBlocks) {
    const int64_t row = index_at(layout, 2 * at.outer) * layout.block_h + at.middle;
    const int64_t column = index_at(layout, 2 * at.outer + 1) * layout.block_w;
    at.base = row * layout.columns + column;
    at.inside = row < layout.rows ? layout.columns - column : 0;
  }
}

SFT_HD int64_t row_length(const Layout& layout) {
  return layout.kind == kRows ? layout.columns : layout.kind == kColumns ? layout.n : layout.block_w;
}

SFT_HD Cursor cursor_at(const Layout& layout, int64_t k) {
  Cursor at{0, 0, 0, k, 0};
  if (layout.kind == kEntries || layout.kind == kAll) return at;
  const int64_t length = row_length(layout);
  at.outer = k / length;
  at.inner = k - at.outer * length;
  if (layout.kind == kBlocks) {
    const int64_t row = at.outer;
    at.outer = row / layout.block_h;
    at.middle = row - at.outer * layout.block_h;
  }
  find_base(layout, at);
  return at;
}

// To the next entry, which there must be.
SFT_HD void advance(const Layout& layout, Cursor& at) {
  ++at.inner;
  if (layout.kind == kEntries || layout.kind == kAll || at.inner < row_length(layout)) return;
  at.inner = 0;
  if (layout.kind != kBlocks || ++at.middle == layout.block_h) {
    at.middle = 0;
    ++at.outer;
  }
  find_base(layout, at);
}

// In the matrix, counted row-major; kPadding for the part of an edge block that hangs over.
SFT_HD int64_t position(const Layout& layout, const Cursor& at) {
  switch (layout.kind) {
    case kRows: return at.base + at.inner;
    case kColumns: return at.base + index_at(layout, at.inner);
    case kBlocks: return at.inner < at.inside ? at.base + at.inner : kPadding;
    case kEntries: return index_at(layout, at.inner);
    case kAll: return at.inner;
  }
  return kPadding;
}

// Of entry k of values.
SFT_HD int64_t position(const Layout& layout, int64_t k) { return position(layout, cursor_at(layout, k)); }

}  // namespace sparse_ft
