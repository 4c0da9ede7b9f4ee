#include "../checks.h"
#include "move.h"
#include "ops.h"

namespace sparse_ft {
namespace {

struct Target {
  void* matrix;  // [rows, columns]
  DType dtype;
  const Layout& layout;
};

bool copy_piece(const Target& target, const void* values, DType values_dtype, int64_t begin, int64_t end) {
  Piece piece;
  convert_any(&piece, target.dtype, values, values_dtype, end - begin);
  return move<Store>(target.matrix, target.dtype, target.layout, begin, end, &piece);
}

// matrix + values in float32, or float64 if either side is; rounded once.
bool add_piece(const Target& target, const void* values, DType values_dtype, int64_t begin, int64_t end) {
  const DType wide = target.dtype == kFloat64 || values_dtype == kFloat64 ? kFloat64 : kFloat32;
  const int64_t count = end - begin;
  Piece held, sum, addend;
  move<Load>(target.matrix, target.dtype, target.layout, begin, end, &held);
  convert_any(&sum, wide, &held, target.dtype, count);
  convert_any(&addend, wide, values, values_dtype, count);
  for (int64_t i = 0; i < count; ++i)
    if (wide == kFloat64)
      sum.doubles[i] += addend.doubles[i];
    else
      sum.floats[i] += addend.floats[i];
  convert_any(&held, target.dtype, &sum, wide, count);
  return move<Store>(target.matrix, target.dtype, target.layout, begin, end, &held);
}

}  // namespace

namespace SFT_VARIANT {

void scatter_selected_(Out matrix, Where where, Out values, ScatterMode mode, int threads) {
  const Layout layout = layout_on(where, matrix, values);
  if (mode == kSwap) check_dtype(values, matrix.dtype);
  check_inside_unless_walked(layout);
  const DType dtype = matrix.dtype;
  const Target target{matrix.data, dtype, layout};
  bool inside = true;
  for_each_chunk(values_count(layout), movers(layout, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
    const auto at = [&](int64_t k) { return data_of<char>(values) + k * size_of(values.dtype); };
    const auto move_all = [&](auto action) {
      void* held = at(chunk_begin);
      keep(inside, move<decltype(action)>(matrix.data, dtype, layout, chunk_begin, chunk_end, held));
    };
    if (mode == kSwap) return move_all(Exchange());
    if (mode == kCopy && dtype == values.dtype) return move_all(Store());
    for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
      const auto write = mode == kAdd ? add_piece : copy_piece;
      keep(inside, write(target, at(begin), values.dtype, begin, end));
    });
  });
  if (!inside) refuse_outside(layout);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
