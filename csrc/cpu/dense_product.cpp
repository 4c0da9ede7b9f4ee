// output [tokens, columns] = input · weight + bias in float32: a layer's forward, or its gradient to the input. The inner dimension is
// cut into chunks of kTokens (what the panels call tokens): each is summed in registers, then added, so that errors stay small.
#include "../checks.h"
#include "packed_product.h"

namespace sparse_ft {
namespace {

// output [tokens, columns] = input [tokens, inner] · weight + bias, all float32.
struct DenseOperands {
  const float* input;  // [tokens, inner]
  int64_t input_stride;
  const float* weight;  // [inner, columns], or [columns, inner] when weight_transposed
  int64_t weight_stride;
  bool weight_transposed;
  const float* bias;  // [columns], or null
  int64_t tokens, inner, columns;
};

DenseOperands operands_of(In input, In weight, MaybeIn bias, Out output) {
  const Matrix x = matrix_of(input, false);
  const bool by_rows = lies_by_rows(weight);
  const int64_t columns = weight.size[0];
  check_size(weight, 1, x.columns);
  check_dtype(input, kFloat32);
  check_dtype(weight, kFloat32);
  if (bias.data) {
    check_dtype(bias, kFloat32);
    check_count(bias, columns);
  }
  check_dtype(output, kFloat32);
  check_count(output, x.rows * columns);
  return {data_of<const float>(input), x.where.stride,
          data_of<const float>(weight), weight.stride[by_rows ? 0 : 1], by_rows,
          data_of<const float>(bias), x.rows, x.columns, columns};
}

constexpr int64_t kDensePart = 2304;  // of the output, either way: the packed operands of a chunk are 4.5 MiB
constexpr int64_t kDenseHeight = 192, kDenseWidth = 256;  // a tile, as in matrix_panels.h
static_assert(kDenseHeight % kTileRows == 0 && kDenseWidth % kTileColumns<float> == 0, "a tile is made of whole panels");

// The numbers first … first + count - 1, the last repeated to fill the last panel.
template <int Width>
int64_t* count_up(int64_t first, int64_t count, int64_t* columns) {
  for (int64_t i = 0; i < round_up(count, Width); ++i) columns[i] = first + smaller(i, count - 1);
  return columns;
}

// Whether the input is read where it lies. It saves a copy: 5 to 15 % of a product whose input has 384 or 1536 features (2048 tokens,
// Zen 4). Where rows are a multiple of a page apart those of one panel share a few lines of the first-level cache: packed is faster
// there, by 10 % at 2048 features.
constexpr int64_t kPage = 4096;
bool stays_in_place(const DenseOperands& o) { return o.input_stride * static_cast<int64_t>(sizeof(float)) % kPage != 0; }

// Rows [m0, m0 + m) and columns [n0, n0 + n) of the output.
void multiply_part(const DenseOperands& o, int64_t m0, int64_t m, int64_t n0, int64_t n, int64_t* rows, int64_t* columns, float* output,
                   int threads) {
  constexpr int64_t width = kTileColumns<float>;
  const PackedPanels<kTileRows, float> input{
      {o.input, o.input_stride}, kFloat32, divide_up(m, kTileRows), count_up<kTileRows>(m0, m, rows), nullptr, o.tokens};
  const PackedPanels<kTileColumns<float>, float> weight{{o.weight, o.weight_stride},
                                                        kFloat32,
                                                        divide_up(n, width),
                                                        count_up<kTileColumns<float>>(n0, n, columns),
                                                        nullptr,
                                                        o.weight_transposed ? o.columns : 0};
  PackedProduct<float> product{o.inner, input, weight, o.columns, false, o.bias ? o.bias + n0 : nullptr, stays_in_place(o)};
  const int64_t across = divide_up(n, kDenseWidth);
  multiply_packed(product, divide_up(m, kDenseHeight) * across, 1, threads, [&](int64_t i) {
    const int64_t y = i / across * kDenseHeight, x = i % across * kDenseWidth;
    return PackedTile<float>{y / kTileRows, x / width, smaller(kDenseHeight, m - y), smaller(kDenseWidth, n - x),
                             output + (m0 + y) * o.columns + n0 + x};
  });
}

}  // namespace

namespace SFT_VARIANT {

// weight: [columns, inner], stored by rows or, as a transposed view has it, by columns.
void dense_product(In input, In weight, MaybeIn bias, Out output, int threads) {
  const DenseOperands o = operands_of(input, weight, bias, output);
  if (o.tokens == 0 || o.columns == 0) return;
  float* to = data_of<float>(output);
  if (o.inner == 0) {
    for (int64_t m = 0; m < o.tokens; ++m)
      for (int64_t n = 0; n < o.columns; ++n) to[m * o.columns + n] = o.bias ? o.bias[n] : 0.0f;
    return;
  }
  constexpr int64_t rows_most = kDensePart + kTileRows, columns_most = kDensePart + kTileColumns<float>;
  const Workspace workspace(Pieces::bytes<int64_t>(rows_most) + Pieces::bytes<int64_t>(columns_most));
  Pieces from = workspace.pieces();
  int64_t *rows = from.cut<int64_t>(rows_most), *columns = from.cut<int64_t>(columns_most);
  for (int64_t m0 = 0; m0 < o.tokens; m0 += kDensePart)
    for (int64_t n0 = 0; n0 < o.columns; n0 += kDensePart)
      multiply_part(o, m0, smaller(kDensePart, o.tokens - m0), n0, smaller(kDensePart, o.columns - n0), rows, columns, to, threads);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
