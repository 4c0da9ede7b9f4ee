#include "checks.h"

#include <sstream>

namespace sparse_ft {
namespace {

template <class... Parts>
std::string told(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  return message.str();
}

template <class... Parts>
[[noreturn]] void refuse(const Tensor& t, const Parts&... parts) {
  throw std::invalid_argument(told(t.name, ": expected ", parts...));
}

std::string shape_of(const Tensor& t) {
  std::string shape = "(";
  for (int d = 0; d < t.dim; ++d) shape += (d ? ", " : "") + std::to_string(t.size[d]);
  return shape + (t.dim == 1 ? ",)" : ")");
}

std::string strides_of(const Tensor& t) {
  std::string strides = "(";
  for (int d = 0; d < t.dim; ++d) strides += (d ? ", " : "") + std::to_string(t.stride[d]);
  return "strides " + strides + ")";
}

void check_order(const Tensor& t) {
  if (!t.in_order) refuse(t, "a contiguous tensor, got shape ", shape_of(t), ", ", strides_of(t));
}

bool is_integer(DType dtype) { return dtype == kInt32 || dtype == kInt64; }

}  // namespace

void check_present(const Tensor& t, Device device) {
  if (t.other) throw WrongType(told(t.name, ": expected a dense tensor, got ", t.other));
  if (t.device != device)
    refuse(t, "a tensor ", kDeviceNames[device], ", got one ", kDeviceNames[t.device]);
  if (!t.data && t.count) refuse(t, "a tensor whose memory is there, got one without");
}

void check_dtype(const Tensor& t, DType dtype) {
  if (t.dtype == dtype) return;
  throw WrongType(told(t.name, ": expected ", kDTypeNames[dtype], ", got ", kDTypeNames[t.dtype]));
}

void check_count(const Tensor& t, int64_t count) {
  if (t.count != count) refuse(t, count, " elements, got shape ", shape_of(t));
  check_order(t);
}

void check_size(const Tensor& t, int dim, int64_t size) {
  if (t.dim > dim && t.size[dim] == size) return;
  refuse(t, "size ", size, " in dimension ", dim, ", got shape ", shape_of(t));
}

void check_floats(const Tensor& t) {
  if (t.dtype <= kFloat16) return;
  throw Unserved(told(t.name, ": expected float32, float64, bfloat16 or float16, got ",
                      kDTypeNames[t.dtype]));
}

void check_floats(const Tensor& t, int64_t count) {
  check_floats(t);
  check_count(t, count);
}

void check_like(const Tensor& t, const Tensor& like) {
  check_dtype(t, like.dtype);
  check_count(t, like.count);
}

void check_bits(const Tensor& t, int64_t count) {
  check_dtype(t, kUInt8);
  check_count(t, (count + 7) / 8);
}

void check_planes(const Tensor& input, const Tensor& output) {
  for (const Tensor* t : {&input, &output})
    if (t->dim < 2) refuse(*t, "[..., H, W], got shape ", shape_of(*t));
  check_floats(input, input.count);
  check_dtype(output, input.dtype);
  check_count(output, output.count);
  const auto planes = [](const Tensor& t) {
    int64_t count = 1;
    for (int d = 0; d < t.dim - 2; ++d) count *= t.size[d];
    return count;
  };
  if (planes(input) == planes(output)) return;
  refuse(output, planes(input), " planes as input, got shape ", shape_of(output));
}

void check_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least)
    throw std::invalid_argument(told(name, ": expected at least ", least, ", got ", value));
  if (value > most)
    throw std::invalid_argument(told(name, ": expected at most ", most, ", got ", value));
}

void check_dense(const Tensor& t) {
  int64_t last = 0;
  for (int d = 0; d < t.dim; ++d) last += (t.size[d] - 1) * t.stride[d];
  if (t.count && last + 1 != t.count)
    refuse(t, "a tensor without gaps, got shape ", shape_of(t), ", ", strides_of(t));
}

void check_same_layout(const Tensor& t, const Tensor& like) {
  bool same = t.dim == like.dim;
  for (int d = 0; same && d < t.dim; ++d)
    same = t.size[d] == like.size[d] && (t.stride[d] == like.stride[d] || t.size[d] < 2);
  if (same) return;
  refuse(t, "the shape and strides of ", like.name, ", ", shape_of(like), ", ", strides_of(like),
         ", got ", shape_of(t), ", ", strides_of(t));
}

Matrix matrix_of(const Tensor& t, bool as_one_row) {
  check_floats(t);
  if (as_one_row) return Matrix{{t.data, t.count}, 1, t.count};
  const int last = t.dim - 1;
  if (last < 0) refuse(t, "at least one dimension, got none");
  const int64_t columns = t.size[last];
  Matrix matrix{{t.data, columns}, 1, columns};
  bool even = columns < 2 || t.stride[last] == 1;
  for (int d = last - 1; d >= 0; --d) {
    if (t.size[d] == 1) continue;
    if (matrix.rows == 1) matrix.where.stride = t.stride[d];
    even &= t.stride[d] == matrix.where.stride * matrix.rows;
    matrix.rows *= t.size[d];
  }
  if (!even && t.count)
    refuse(t, "rows of contiguous elements, as far from each other, got shape ", shape_of(t), ", ",
           strides_of(t));
  return matrix;
}

Rows rows_like(const Tensor& t, const Tensor& like, const Matrix& first, bool as_one_row) {
  const Matrix matrix = matrix_of(t, as_one_row);
  if (matrix.rows != first.rows || matrix.columns != first.columns)
    refuse(t, "the shape of ", like.name, ", ", shape_of(like), ", got ", shape_of(t));
  return matrix.where;
}

bool lies_by_rows(const Tensor& t) {
  if (t.dim != 2) refuse(t, "[rows, columns], got shape ", shape_of(t));
  const auto adjoins = [&](int d) { return t.stride[d] == 1 || t.size[d] < 2; };
  if (adjoins(1) || adjoins(0)) return adjoins(1);
  refuse(t, "a matrix that lies by rows or by columns, got ", strides_of(t));
}

ByChannel by_channel(const Tensor& t) {
  check_floats(t);
  if (t.dim < 2) refuse(t, "[N, C, …], got shape ", shape_of(t));
  const int64_t channels = t.size[1], others = channels ? t.count / channels : 0;
  if (t.in_order) return {t.size[0], channels, t.size[0] ? others / t.size[0] : 0};
  int64_t expected = 1;
  const auto follows = [&](int d) {
    const bool holds = t.size[d] == 1 || t.stride[d] == expected;
    expected *= t.size[d];
    return holds;
  };
  bool last = follows(1);
  for (int d = t.dim - 1; d > 1; --d) last &= follows(d);
  if (!(last & follows(0)))
    refuse(t, "contiguous or channels last, got shape ", shape_of(t), ", ", strides_of(t));
  return {others, channels, 1};
}

Layout layout_of(const Selection& selection, int64_t rows, int64_t columns) {
  const Tensor& index = selection.index;
  const bool pairs = has_pairs(selection.kind);
  if (!is_integer(index.dtype))
    throw WrongType(told("index: expected int32 or int64, got ", kDTypeNames[index.dtype]));
  if (index.dim != 1 + pairs || (pairs && index.size[1] != 2))
    refuse(index, pairs ? "shape [n, 2]" : "shape [n]", ", got ", shape_of(index));
  check_order(index);
  check_range("block_h", selection.block_h, 1);
  check_range("block_w", selection.block_w, 1);
  return Layout{selection.kind,    index.data,        index.dtype == kInt64 ? 64 : 32,
                index.size[0],     selection.block_h, selection.block_w,
                rows,              columns,           0};
}

Layout layout_on(const Selection& selection, const Tensor& matrix, const Tensor& values) {
  if (matrix.dim != 2) refuse(matrix, "[rows, columns], got shape ", shape_of(matrix));
  check_floats(matrix, matrix.count);
  const Layout layout = layout_of(selection, matrix.size[0], matrix.size[1]);
  check_floats(values, values_count(layout));
  return layout;
}

void check_inside(const Layout& layout) {
  if (!inside(layout)) refuse_outside(layout);
}

void check_inside_unless_walked(const Layout& layout) {
  if (!is_listed(layout.kind)) check_inside(layout);
}

void refuse_outside(const Layout& layout) {
  throw std::out_of_range(told("index: it names ", kKindNames[layout.kind],
                               " that a matrix of shape (", layout.rows, ", ", layout.columns,
                               ") does not have; was it edited after the selection was made? Make "
                               "a new selection instead"));
}

}  // namespace sparse_ft
