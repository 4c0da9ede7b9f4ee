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

// Whether that is faster than tiles that pack for themselves.
template <class T>
bool fills_matrix(const Layout& layout, DType values_dtype) {
  const int64_t from = kPackedFrom[layout.kind];
  return from < kNeverPacked && is_dtype<T>(values_dtype) && lines_of(layout) >= from;
}

// Panels of `count` columns from `first` on; name(i) is what number i is called in the source.
template <int Width, class T, class Name>
PackedPanels<Width, T> panels_of(const Operand& source, DType dtype, int64_t first, int64_t count, int64_t* columns, Name&& name) {
  const int64_t panels = divide_up(count, Width);
  for (int64_t i = 0; i < panels * Width; ++i) columns[i] = name(first + smaller(i, count - 1));
  return {source, dtype, panels, columns, nullptr};
}

template <class T>
void matrix_panels(const WgradOperands& operands, const Layout& layout, T* values, bool accumulate, int threads) {
  constexpr int64_t width = kTileColumns<T>;
  const Operand a{operands.grad_output, operands.grad_output_stride}, b{operands.input, operands.input_stride};
  const auto row = [&](int64_t m) { return row_of(layout, 0, m); };
  const auto column = [&](int64_t n) { return operands.compact_input ? n : column_of(layout, 0, n); };
  const Group all = only_group(layout);
  const Workspace workspace(Pieces::bytes<int64_t>(kPartSide + kTileRows) + Pieces::bytes<int64_t>(kPartSide + width));
  Pieces from = workspace.pieces();
  int64_t *a_columns = from.cut<int64_t>(kPartSide + kTileRows), *b_columns = from.cut<int64_t>(kPartSide + width);
  for (int64_t m0 = 0; m0 < all.rows; m0 += kPartSide)
    for (int64_t n0 = 0; n0 < all.columns; n0 += kPartSide) {
      const int64_t m = smaller(kPartSide, all.rows - m0), n = smaller(kPartSide, all.columns - n0);
      PackedProduct<T> product{operands.tokens, panels_of<kTileRows, T>(a, operands.dtype, m0, m, a_columns, row),
                               panels_of<width, T>(b, operands.dtype, n0, n, b_columns, column), all.columns, accumulate};
      const int64_t across = divide_up(n, kTileWidth);
      multiply_packed(product, divide_up(m, kTileHeight) * across, 1, threads, [&](int64_t i) {
        const int64_t y = i / across * kTileHeight, x = i % across * kTileWidth;
        return PackedTile<T>{y / kTileRows, x / width, smaller(kTileHeight, m - y), smaller(kTileWidth, n - x),
                             values + (m0 + y) * all.columns + n0 + x};
      });
    }
}

}  // namespace
}  // namespace sparse_ft
