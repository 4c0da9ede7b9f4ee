// What the kernels of BatchNorm share: numbers for each channel of a tensor [outer, channels, inner].
#pragma once

#include <vector>

#include "../checks.h"
#include "bits.h"
#include "ops.h"

namespace sparse_ft {
namespace {

constexpr double kNanoseconds = 0.4;  // an element takes in the third-level cache, where activations are

// Of one number a channel, in the type of the arithmetic; `otherwise` where none are given.
template <class T>
std::vector<T> widened(const Tensor& from, int64_t channels, T otherwise) {
  std::vector<T> to(channels, otherwise);
  const DType wide = sizeof(T) == 8 ? kFloat64 : kFloat32;
  if (from.data) convert_any(to.data(), wide, from.data, from.dtype, channels);
  return to;
}

void check_channels(const Tensor& t, int64_t channels) {
  if (t.data) check_floats(t, channels);
}

}  // namespace
}  // namespace sparse_ft
