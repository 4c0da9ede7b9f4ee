#include "../checks.h"
#include "gather_thread.h"
#include "launch.h"
#include "ops.h"

namespace sparse_ft {
namespace {

constexpr const char* kOp = "gather_selected_cuda";

template <class Matrix, class Values>
__global__ void __launch_bounds__(kGatherThreads, 4)
    gather_selected_kernel(const Matrix* matrix, Layout layout, Values* values, int64_t count) {
  gather_thread(matrix, layout, values, count, gridDim.x, blockIdx.x, threadIdx.x);
}

}  // namespace

void gather_selected_cuda(In matrix, Where where, Out values,
                          uintptr_t stream) {
  const Layout layout = layout_on(where, matrix, values);
  const int64_t count = values.count;
  if (count == 0) return;
  const DeviceOf device(kOp, "values", values.data);
  with_dtype(matrix.dtype, [&](auto m) {
    with_dtype(values.dtype, [&](auto v) {
      using Matrix = decltype(m);
      using Values = decltype(v);
      const unsigned blocks = static_cast<unsigned>(gather_blocks<Matrix, Values>(count));
      gather_selected_kernel<<<blocks, kGatherThreads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(
          data_of<const Matrix>(matrix), layout, data_of<Values>(values), count);
    });
  });
  check(kOp, cudaGetLastError());
}

}  // namespace sparse_ft
