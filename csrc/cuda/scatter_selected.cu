#include "scatter_selected.h"

#include "launch.h"

namespace sparse_ft {
namespace {

constexpr const char* kOp = "scatter_selected_cuda_";
constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 65536;  // the loop strides over the rest

template <class Matrix, class Values>
__device__ void apply(Matrix& matrix, Values& value, ScatterMode mode) {
  if (mode == kCopy) {
    matrix = convert(value, Tag<Matrix>());
  } else if (mode == kAdd) {
    using T = typename Compute<Matrix, Values>::type;
    matrix = convert(convert(matrix, Tag<T>()) + convert(value, Tag<T>()), Tag<Matrix>());
  } else {
    const Matrix held = matrix;  // a swap: both have one dtype, so nothing is rounded
    matrix = convert(value, Tag<Matrix>());
    value = convert(held, Tag<Values>());
  }
}

template <class Matrix, class Values>
__global__ void __launch_bounds__(kThreads)
    scatter_selected_kernel(Matrix* matrix, Values* values, Layout layout, int64_t count, ScatterMode mode) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; k < count; k += stride) {
    const int64_t at = position(layout, k);
    if (at != kPadding) apply(matrix[at], values[k], mode);
  }
}

}  // namespace

namespace cuda {

void scatter_selected_(void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, ScatterMode mode,
                       uintptr_t stream) {
  const int64_t count = values_count(layout);
  if (count == 0) return;
  const DeviceOf device(kOp, "matrix", matrix);
  const int64_t needed = (count + kThreads - 1) / kThreads;
  const unsigned blocks = static_cast<unsigned>(needed < kMaxBlocks ? needed : kMaxBlocks);
  with_dtype(matrix_dtype, [&](auto m) {
    with_dtype(values_dtype, [&](auto v) {
      using Matrix = decltype(m);
      using Values = decltype(v);
      scatter_selected_kernel<<<blocks, kThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
          static_cast<Matrix*>(matrix), static_cast<Values*>(values), layout, count, mode);
    });
  });
  check(kOp, cudaGetLastError());
}

}  // namespace cuda
}  // namespace sparse_ft
