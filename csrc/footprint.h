// Where a tensor lies and how, kept small: while it stays so, its address means what it meant.
#pragma once

#include <algorithm>
#include <vector>

#include "tensor.h"

namespace sparse_ft {

class Footprint {
 public:
  explicit Footprint(const Tensor& t) : data_(t.data), dtype_(t.dtype), device_(t.device) {
    extents_.assign(t.size, t.size + t.dim);
    extents_.insert(extents_.end(), t.stride, t.stride + t.dim);
  }

  bool is_of(const Tensor& t) const {
    return t.data == data_ && t.device == device_ && lies_alike(t);
  }

  // Whether one walk through memory meets the elements of both in their order.
  bool lies_alike(const Tensor& t) const {
    const size_t dim = extents_.size() / 2;
    if (t.dtype != dtype_ || static_cast<size_t>(t.dim) != dim) return false;
    return std::equal(t.size, t.size + dim, extents_.begin()) &&
           std::equal(t.stride, t.stride + dim, extents_.begin() + dim);
  }

  Device device() const { return device_; }

 private:
  const void* data_;
  DType dtype_;
  Device device_;
  std::vector<int64_t> extents_;  // sizes, then strides
};

}  // namespace sparse_ft
