#include "scatter_selected.h"

#include "launch.h"
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

namespace cuda {

void scatter_selected_(void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, ScatterMode mode,
                       uintptr_t stream) {
  const int64_t count = values_count(layout);
  if (count == 0) return;
  const DeviceOf device(kOp, "matrix", matrix);
  with_dtype(matrix_dtype, [&](auto m) {
    with_dtype(values_dtype, [&](auto v) {
      using Matrix = decltype(m);
      using Values = decltype(v);
      const unsigned blocks = static_cast<unsigned>(gather_blocks<Matrix, Values>(count));
      scatter_selected_kernel<<<blocks, kGatherThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
          static_cast<Matrix*>(matrix), static_cast<Values*>(values), layout, count, mode);
    });
  });
  check(kOp, cudaGetLastError());
}

}  // namespace cuda
}  // namespace sparse_ft
