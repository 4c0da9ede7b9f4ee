// Whether the kernels of this build run on a device, found out without running one: an older driver
// cannot, and for a compute capability that they were not compiled for there is no image of them.
#include <cuda_runtime.h>

#include <string>

#include "ops.h"

namespace sparse_ft {
namespace {

__global__ void probe_kernel() {}

cudaError_t look_up(int device) {
  cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return error;
  cudaFuncAttributes found;
  return cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(&probe_kernel));
}

}  // namespace

std::string why_not_on_cuda_device(int device) {
  int previous = 0;
  cudaError_t error = cudaGetDevice(&previous);
  if (error == cudaSuccess) {
    error = look_up(device);
    cudaSetDevice(previous);
  }
  cudaGetLastError();  // or the next launch, of whomever, would find it
  if (error == cudaSuccess) return "";
  return std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
}

}  // namespace sparse_ft
