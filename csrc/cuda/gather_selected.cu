#include "gather_selected.h"

#include "gather_thread.h"
#include "launch.h"

namespace sparse_ft {
namespace {

constexpr const char* kOp = "gather_selected_cuda";

template <class Matrix, class Values>
__global__ void __launch_bounds__(kGatherThreads, 4)
    gather_selected_kernel(const Matrix* matrix, Layout layout, Values* values, int64_t count) {
  gather_thread(matrix, layout, values, count, gridDim.x, blockIdx.x, threadIdx.x);
}

}  // namespace

namespace cuda {

void gather_selected(const void* matrix, DType matrix_dtype, const Layout& layout, void* values, DType values_dtype, uintptr_t stream) {
  const int64_t count = values_count(layout);
  if (count == 0) return;
  const DeviceOf device(kOp, "values", values);
  with_dtype(matrix_dtype, [&](auto m) {
    with_dtype(values_dtype, [&](auto v) {
      using Matrix = decltype(m);
      using Values = decltype(v);
      const unsigned blocks = static_cast<unsigned>(gather_blocks<Matrix, Values>(count));
      gather_selected_kernel<<<blocks, kGatherThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
          static_cast<const Matrix*>(matrix), layout, static_cast<Values*>(values), count);
    });
  });
  check(kOp, cudaGetLastError());
}

}  // namespace cuda
}  // namespace sparse_ft
