#include "move.h"
#include "ops.h"

namespace sparse_ft {
namespace SFT_VARIANT {

bool gather_selected(const void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, int threads) {
  void* from = const_cast<void*>(matrix);  // Load only reads it
  bool inside = true;
  for_each_chunk(values_count(layout), movers(layout, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
    char* to = static_cast<char*>(values);
    if (matrix_dtype == values_dtype)
      return keep(inside, move<Load>(from, matrix_dtype, layout, chunk_begin, chunk_end, to + chunk_begin * size_of(values_dtype)));
    for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
      Piece piece;
      keep(inside, move<Load>(from, matrix_dtype, layout, begin, end, &piece));
      convert_any(to + begin * size_of(values_dtype), values_dtype, &piece, matrix_dtype, end - begin);
    });
  });
  return inside;
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
