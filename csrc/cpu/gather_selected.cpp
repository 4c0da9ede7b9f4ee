#include "../checks.h"
#include "move.h"
#include "ops.h"

namespace sparse_ft {
namespace SFT_VARIANT {

// first: the position that entries have for the first of the matrix, which may be a part of a larger
// one.
void gather_selected(In matrix, Where where, Out values, int64_t first, int threads) {
  Layout layout = layout_on(where, matrix, values);
  layout.first = first;
  check_inside_unless_walked(layout);
  bool inside = true;
  for_each_chunk(values_count(layout), movers(layout, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
    const auto to = [&](int64_t k) { return data_of<char>(values) + k * size_of(values.dtype); };
    if (matrix.dtype == values.dtype)
      return keep(inside, move<Load>(matrix.data, matrix.dtype, layout, chunk_begin, chunk_end,
                                     to(chunk_begin)));
    for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
      Piece piece;
      keep(inside, move<Load>(matrix.data, matrix.dtype, layout, begin, end, &piece));
      convert_any(to(begin), values.dtype, &piece, matrix.dtype, end - begin);
    });
  });
  if (!inside) refuse_outside(layout);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
