// Where entry k of `values` sits in the matrix, for every kind of selection. Shared by host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparse_ft {

enum Kind : int { kRows = 0, kColumns = 1, kBlocks = 2, kEntries = 3, kAll = 4 };

struct Layout {
  Kind kind;
  const void* index;  // rows [R], columns [C], blocks [n, 2] of (block_row, block_col), entries [nnz] of row * columns + column
  int index_bits;     // 32 or 64
  int64_t n;          // index.size(0)
  int64_t block_h, block_w;
  int64_t rows, columns;  // the shape of the matrix
};

SFT_HD int64_t index_at(const Layout& layout, int64_t i) {
  return layout.index_bits == 64 ? static_cast<const int64_t*>(layout.index)[i]
                                 : static_cast<int64_t>(static_cast<const int32_t*>(layout.index)[i]);
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

// Entry k of values in the matrix, counted row-major; kPadding for the part of an edge block that hangs over.
SFT_HD int64_t position(const Layout& layout, int64_t k) {
  switch (layout.kind) {
    case kRows: return index_at(layout, k / layout.columns) * layout.columns + k % layout.columns;
    case kColumns: return k / layout.n * layout.columns + index_at(layout, k % layout.n);
    case kBlocks: {
      const int64_t area = layout.block_h * layout.block_w;
      const int64_t block = k / area, within = k % area;
      const int64_t row = index_at(layout, 2 * block) * layout.block_h + within / layout.block_w;
      const int64_t column = index_at(layout, 2 * block + 1) * layout.block_w + within % layout.block_w;
      return row < layout.rows && column < layout.columns ? row * layout.columns + column : kPadding;
    }
    case kEntries: return index_at(layout, k);
    case kAll: return k;
  }
  return kPadding;
}

}  // namespace sparse_ft
