// What every launch needs: errors by name, and the device that holds the tensors.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace sparse_ft {
namespace {

void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

// Makes the device that holds a pointer the current one, for a while.
class DeviceOf {
 public:
  DeviceOf(const char* op, const char* argument, const void* pointer) {
    cudaPointerAttributes attributes;
    check(op, cudaGetDevice(&previous_));
    check(op, cudaPointerGetAttributes(&attributes, pointer));
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
      throw std::runtime_error(std::string(op) + ": " + argument + " is not in device memory");
    check(op, cudaSetDevice(attributes.device));
  }
  ~DeviceOf() { cudaSetDevice(previous_); }
  DeviceOf(const DeviceOf&) = delete;

 private:
  int previous_ = 0;
};

}  // namespace
}  // namespace sparse_ft
