// What a kernel is told of a tensor: where it lies, what its elements are and how they lie. Nothing
// here owns memory: whoever calls holds the tensors until the call returns.
#pragma once

#include "layout.h"

namespace sparse_ft {

constexpr int kMostDims = 64;  // as torch

enum Device : int { kHost, kCuda, kElsewhere, kAbsent };  // absent: a MaybeTensor left out
constexpr const char* kDeviceNames[] = {"in host memory", "on a CUDA device", "elsewhere", "absent"};

struct Tensor {
  const char* name;   // of the argument, for messages
  const char* other;  // the type of what is no dense tensor, null for a tensor
  void* data;
  DType dtype;
  Device device;
  int dim;
  int64_t count;  // of elements
  bool in_order;  // contiguous
  int64_t size[kMostDims], stride[kMostDims];
};

// May be left out: `data` is null then.
struct MaybeTensor : Tensor {};

static inline bool is_given(const MaybeTensor& t) { return t.device != kAbsent; }

// What trains of a matrix that is named beside it.
struct Selection {
  Kind kind;
  Tensor index;
  int64_t block_h, block_w;
};

template <class T>
static inline T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data);
}

struct Rows {
  const void* data;  // [rows, columns]: the elements of a row lie next to each other
  int64_t stride;    // from one row to the next
};

// A tensor as a matrix whose rows lie in order.
struct Matrix {
  Rows where;
  int64_t rows, columns;
};

// A tensor [outer, channels, inner], as it lies in memory.
struct ByChannel {
  int64_t outer, channels, inner;
};

}  // namespace sparse_ft
