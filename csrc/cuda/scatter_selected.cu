#include "../checks.h"
#include "launch.h"
#include "ops.h"
#include "scatter_thread.h"

namespace sparse_ft {
namespace {

constexpr const char* kOp = "scatter_selected_cuda_";

template <class Matrix, class Values>
__global__ void __launch_bounds__(kGatherThreads, 4)
    scatter_selected_kernel(Matrix* matrix, Values* values, Layout layout, int64_t count, ScatterMode mode) {
  scatter_thread(matrix, layout, values, count, mode, gridDim.x, blockIdx.x, threadIdx.x);
}

}  // namespace

void scatter_selected_cuda_(Out matrix, Where where, Out values,
                            ScatterMode mode, uintptr_t stream) {
  const Layout layout = layout_on(where, matrix, values);
  if (mode == kSwap) check_dtype(values, matrix.dtype);
  const int64_t count = values.count;
  if (count == 0) return;
  const DeviceOf device(kOp, "matrix", matrix.data);
  with_dtype(matrix.dtype, [&](auto m) {
    with_dtype(values.dtype, [&](auto v) {
      using Matrix = decltype(m);
      using Values = decltype(v);
      const unsigned blocks = static_cast<unsigned>(gather_blocks<Matrix, Values>(count));
      scatter_selected_kernel<<<blocks, kGatherThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
          data_of<Matrix>(matrix), data_of<Values>(values), layout, count, mode);
    });
  });
  check(kOp, cudaGetLastError());
}

}  // namespace sparse_ft
