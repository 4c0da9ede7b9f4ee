// values [M, N] = the chosen columns of grad_output transposed * those of input, for so many rows or columns, or all of both, that
// every tile would pack much of the other operand anew. Parts of the result are worked one after another, their operands packed once.
#pragma once

#include "packed_product.h"

namespace sparse_ft {
namespace {

constexpr int64_t kPartSide = 2304;   // of the result: a chunk of the packed operands of a part is 4.5 MiB
constexpr int64_t kTileHeight = 192;  // packed a stays in the second-level cache: 192 x 256 fp32 = 192 KiB
constexpr int64_t kTileWidth = 256;
static_assert(kTileHeight % kTileRows == 0 && kTileWidth % kTileColumns<float> == 0, "a tile is made of whole panels");
// From here on it is faster than tiles that pack for themselves: at T = in = out = 2048, fp32, AVX2, one thread, 5 % of the rows take
// 11.9 ms instead of 12.4 and 25 % 48.7 instead of 55.7; 5 % of the columns 13.6 instead of 12.9 and 10 % 22.7 instead of 25.
constexpr int64_t kManyRows = 64, kManyColumns = 160;

template <class T>
bool fills_matrix(const Layout& layout, DType values_dtype) {
  const int64_t many = layout.kind == kRows ? kManyRows : kManyColumns;
  return layout.kind != kBlocks && is_dtype<T>(values_dtype) && (layout.kind == kAll || layout.n >= many);
}

// Panels of `count` columns from `first` on; `index` is what they are called in the layout, null: they are all there.
template <int Width, class T>
PackedPanels<Width, T> panels_of(const Operand& source, DType dtype, const Layout* index, int64_t first, int64_t count, int64_t* columns) {
  const int64_t panels = divide_up(count, Width);
  for (int64_t i = 0; i < panels * Width; ++i) {
    const int64_t which = first + smaller(i, count - 1);
    columns[i] = index ? index_at(*index, which) : which;
  }
  return {source, dtype, panels, columns, nullptr};
}

template <class T>
void matrix_panels(const WgradOperands& operands, const Layout& layout, T* values, bool accumulate, int threads) {
  constexpr int64_t width = kTileColumns<T>;
  const Layout* a_index = layout.kind == kRows ? &layout : nullptr;
  const Layout* b_index = layout.kind == kColumns && !operands.compact_input ? &layout : nullptr;
  const int64_t rows = layout.kind == kRows ? layout.n : layout.rows, columns = layout.kind == kColumns ? layout.n : layout.columns;
  const Workspace workspace(Pieces::bytes<int64_t>(kPartSide + kTileRows) + Pieces::bytes<int64_t>(kPartSide + width));
  Pieces from = workspace.pieces();
  int64_t *a_columns = from.cut<int64_t>(kPartSide + kTileRows), *b_columns = from.cut<int64_t>(kPartSide + width);
  for (int64_t m0 = 0; m0 < rows; m0 += kPartSide)
    for (int64_t n0 = 0; n0 < columns; n0 += kPartSide) {
      const int64_t m = smaller(kPartSide, rows - m0), n = smaller(kPartSide, columns - n0);
      PackedProduct<T> product{
          operands.tokens,
          panels_of<kTileRows, T>({operands.grad_output, operands.grad_output_stride}, operands.dtype, a_index, m0, m, a_columns),
          panels_of<width, T>({operands.input, operands.input_stride}, operands.dtype, b_index, n0, n, b_columns), columns, accumulate};
      const int64_t across = divide_up(n, kTileWidth);
      multiply_packed(product, divide_up(m, kTileHeight) * across, 1, threads, [&](int64_t i) {
        const int64_t y = i / across * kTileHeight, x = i % across * kTileWidth;
        return PackedTile<T>{y / kTileRows, x / width, smaller(kTileHeight, m - y), smaller(kTileWidth, n - x),
                             values + (m0 + y) * columns + n0 + x};
      });
    }
}

}  // namespace
}  // namespace sparse_ft
