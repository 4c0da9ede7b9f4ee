// What the ops ask of their arguments, so that nothing is read or written outside of a tensor. Compiled
// once, with no instruction set in particular. Each throws what Python shows as ValueError, TypeError
// or IndexError, and names the argument and what was found.
#pragma once

#include <stdexcept>

#include "tensor.h"

namespace sparse_ft {

struct WrongType : std::invalid_argument {  // TypeError in Python
  using std::invalid_argument::invalid_argument;
};
struct Unserved : WrongType {  // a TypeError too: of a dtype that no kernel knows
  using WrongType::WrongType;
};

void check_present(const Tensor& t, Device device);    // a dense tensor, on that device
void check_dtype(const Tensor& t, DType dtype);
void check_count(const Tensor& t, int64_t count);      // that many elements, contiguous
void check_size(const Tensor& t, int dim, int64_t size);
void check_floats(const Tensor& t);                    // one of the four dtypes
void check_floats(const Tensor& t, int64_t count);     // likewise, and check_count
void check_like(const Tensor& t, const Tensor& like);  // its dtype, and check_count of its elements
void check_bits(const Tensor& t, int64_t count);       // one bit for each of `count` elements
// [..., H, W] each, contiguous, with as many planes and of one dtype.
void check_planes(const Tensor& input, const Tensor& output);
void check_range(const char* name, int64_t value, int64_t least, int64_t most = INT64_MAX);
void check_same_layout(const Tensor& t, const Tensor& like);  // sizes and strides
void check_dense(const Tensor& t);  // each element of its memory once, in any order

// All dimensions but the last are the rows, which need not adjoin. as_one_row: of a contiguous tensor.
Matrix matrix_of(const Tensor& t, bool as_one_row);
// Likewise, with as many rows and columns as `like` has, whose matrix is `first`.
Rows rows_like(const Tensor& t, const Tensor& like, const Matrix& first, bool as_one_row);
// Whether [rows, columns] lies by rows; else it lies by columns, as a transposed view does.
bool lies_by_rows(const Tensor& t);
// Of [N, C, …] that is contiguous, or channels last.
ByChannel by_channel(const Tensor& t);

// The layout on a matrix of rows x columns, which the index may lead out of.
Layout layout_of(const Selection& selection, int64_t rows, int64_t columns);
// Of a contiguous matrix, and values of as many elements.
Layout layout_on(const Selection& selection, const Tensor& matrix, const Tensor& values);
void check_inside(const Layout& layout);
// Of all kinds but those whose kernels look at the index as they come to it.
void check_inside_unless_walked(const Layout& layout);
[[noreturn]] void refuse_outside(const Layout& layout);

}  // namespace sparse_ft
