// One tensor of masked_adamw_, as the CPU and the CUDA kernels know it.
#pragma once

#include <vector>

#include "adamw_variation.h"
#include "tensor.h"

namespace sparse_ft {

// How values and moments are kept in fewer bits than they are computed in; null and false where nothing
// is particular about them.
struct AdamWStorage {
  int16_t* correction;  // [count]: with values in bfloat16 the master; moments are float32 then
  bool by_chance;       // what is stored in 16 bits is rounded by chance
  uint64_t seed;        // of that
  // [ceil(count / kQuantBlock)]: moments are codes of 8 bits; both or neither
  float *exp_avg_absmax, *exp_avg_sq_absmax;
};

struct AdamWTensor {
  void* values;      // [count]
  const void* grad;  // [count]
  void* exp_avg;     // [count]
  void* exp_avg_sq;  // [count]
  float* step;       // one number
  int64_t count;
  DType dtype;         // of values and grad, and of the moments unless `storage` says otherwise
  void* weight;        // [layout.rows, layout.columns], or null: nothing to write through
  DType weight_dtype;
  Layout layout;
  double lr, beta1, beta2, eps, weight_decay;
  const float* lr_at;  // one number that counts instead of lr, or null
  AdamWStorage storage;
  AdamWVariation variation;
};

// What Python holds from step to step: a tensor without its gradient and its settings. It knows
// addresses: what it was made of must live, and stay where it is.
struct KnownTensor {
  AdamWTensor tensor;
  Device device;
};

// Of one step of one tensor.
struct AdamWSettings {
  double lr, beta1, beta2, eps, weight_decay;
  uintptr_t lr_at;  // of one float that counts instead of lr, or 0
};

// layout: null where there is no weight. seed: -1 where nothing is rounded by chance. Throws as checks.h
// does for what does not go together.
KnownTensor known_tensor(const Tensor& values, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                         const Tensor& step, int64_t seed, const MaybeTensor& correction,
                         const MaybeTensor& exp_avg_absmax, const MaybeTensor& exp_avg_sq_absmax,
                         const MaybeTensor& generation, const MaybeTensor& births,
                         const MaybeTensor& factor, const MaybeTensor& origin,
                         const MaybeTensor& weight, const Selection* layout);

// What steps on a device: one gradient's address and one settings a tensor.
std::vector<AdamWTensor> stepping(const std::vector<const KnownTensor*>& tensors,
                                  const std::vector<uintptr_t>& grads,
                                  const std::vector<const AdamWSettings*>& settings, Device device);

}  // namespace sparse_ft
