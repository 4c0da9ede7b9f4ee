// What is read here of DLPack 1 (https://dmlc.github.io/dlpack): a table of functions that the type of a
// tensor offers, which tell of it in some 20 ns where five attributes take 300.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace sparse_ft {
namespace dlpack {

constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
constexpr const char* kCapsule = "dlpack_exchange_api";

struct View {
  void* data;
  int32_t device_type, device_id;
  int32_t dim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // in elements; they live as the tensor does
  uint64_t byte_offset;
};

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* older;
  void *allocate, *from_object, *to_object;  // of no use here
  int (*view_of)(void* object, View* view);  // may be null; not 0: an error is set
};

// code 0: signed integers, 1: unsigned, 2: floats, 4: bfloat16.
inline DType dtype_of(const View& view) {
  if (view.lanes != 1) return kOtherDType;
  switch (view.code << 8 | view.bits) {
    case 2 << 8 | 32: return kFloat32;
    case 2 << 8 | 64: return kFloat64;
    case 2 << 8 | 16: return kFloat16;
    case 4 << 8 | 16: return kBFloat16;
    case 1 << 8 | 8: return kUInt8;
    case 0 << 8 | 16: return kInt16;
    case 0 << 8 | 32: return kInt32;
    case 0 << 8 | 64: return kInt64;
    default: return kOtherDType;
  }
}

inline char* data_of(const View& view) { return static_cast<char*>(view.data) + view.byte_offset; }

// 3: host memory that is pinned for CUDA, 13: managed by it.
inline Device device_of(const View& view) {
  if (view.device_type == 1 || view.device_type == 3) return kHost;
  return view.device_type == 2 || view.device_type == 13 ? kCuda : kElsewhere;
}

}  // namespace dlpack
}  // namespace sparse_ft
