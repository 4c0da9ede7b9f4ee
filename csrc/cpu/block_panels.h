// values[b] = a panel of grad_output transposed * a panel of input, for blocks that fill register tiles. The block rows of
// grad_output and the block columns of input that are needed are packed once, each block is a tile.
#pragma once

#include "packed_product.h"
#include "used.h"

namespace sparse_ft {
namespace {

// Blocks whose width leaves no more than a quarter of the register tiles idle.
template <class T>
bool fills_panels(const Layout& layout) {
  return has_tiles(layout.kind) && 4 * layout.block_w >= 3 * round_up(layout.block_w, kTileColumns<T>);
}

// The panels of the blocks of one operand that are used; the columns that hang over are packed as its last one.
template <int Width, class T>
PackedPanels<Width, T> panels_of(const Operand& source, DType dtype, const Used& used, int64_t size, int64_t block, int64_t* columns) {
  const int64_t per_block = divide_up(block, Width);
  for (int64_t i = 0; i < used.count * per_block * Width; ++i)
    columns[i] = smaller(used.column[i / (per_block * Width)] * block + i % (per_block * Width), size - 1);
  return {source, dtype, used.count * per_block, columns, nullptr};
}

template <class T>
void block_panels(const PanelProblem& panels, void* values, DType values_dtype, bool accumulate, int threads) {
  constexpr int64_t width = kTileColumns<T>;
  const Layout& layout = *panels.layout;
  const bool in_values = is_dtype<T>(values_dtype);
  const int64_t count = values_count(layout), area = layout.block_h * layout.block_w;
  const int64_t down = divide_up(layout.rows, layout.block_h), across = divide_up(layout.columns, layout.block_w);
  const int64_t a_panels = divide_up(layout.block_h, kTileRows), b_panels = divide_up(layout.block_w, width);
  const Workspace workspace(Used::bytes(down) + Used::bytes(across) + Pieces::bytes<int64_t>(down * a_panels * kTileRows) +
                            Pieces::bytes<int64_t>(across * b_panels * width) + (in_values ? 0 : Pieces::bytes<T>(count)));
  Pieces from = workspace.pieces();
  Used rows(from, down), columns(from, across);
  for (int64_t block = 0; block < layout.n; ++block) {
    rows.mark(index_at(layout, 2 * block));
    columns.mark(index_at(layout, 2 * block + 1));
  }
  rows.collect(down);
  columns.collect(across);
  int64_t* a_columns = from.cut<int64_t>(down * a_panels * kTileRows);
  int64_t* b_columns = from.cut<int64_t>(across * b_panels * width);
  PackedProduct<T> product{panels.tokens,
                           panels_of<kTileRows, T>(panels.a, panels.dtype, rows, layout.rows, layout.block_h, a_columns),
                           panels_of<width, T>(panels.b, panels.dtype, columns, layout.columns, layout.block_w, b_columns),
                           layout.block_w, accumulate && in_values};
  T* sums = in_values ? static_cast<T*>(values) : from.cut<T>(count);
  const auto tile_at = [&](int64_t block) {
    const int64_t row = index_at(layout, 2 * block), column = index_at(layout, 2 * block + 1);
    return PackedTile<T>{rows.slot[row] * a_panels, columns.slot[column] * b_panels,
                         smaller(layout.block_h, layout.rows - row * layout.block_h),
                         smaller(layout.block_w, layout.columns - column * layout.block_w), sums + block * area};
  };
  for (int64_t block = 0; block < layout.n && !product.accumulate; ++block) {
    const PackedTile<T> tile = tile_at(block);
    if (tile.height < layout.block_h || tile.width < layout.block_w) memset(tile.result, 0, area * sizeof(T));  // its padding
  }
  multiply_packed(product, layout.n, divide_up(layout.n, 64 * threads), threads, tile_at);
  if (!in_values) store_sums(sums, count, values, values_dtype, accumulate);
}

}  // namespace
}  // namespace sparse_ft
