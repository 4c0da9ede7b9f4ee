// Tensors as the ops are told of them, over memory that a test holds.
#pragma once

#include <initializer_list>

#include "../../csrc/cpu/ops.h"

namespace sparse_ft {

// row_stride: of the last dimension but one, 0 where the rows adjoin.
static inline Tensor view(void* data, DType dtype, std::initializer_list<int64_t> size,
                          int64_t row_stride = 0) {
  Tensor t{};
  t.name = "a tensor";
  t.data = data;
  t.dtype = dtype;
  t.dim = static_cast<int>(size.size());
  t.count = 1;
  t.in_order = true;
  for (int d = t.dim - 1; d >= 0; --d) {
    t.size[d] = size.begin()[d];
    t.stride[d] = d == t.dim - 2 && row_stride ? row_stride : t.count;
    if (t.size[d] != 1) t.in_order &= t.stride[d] == t.count;
    t.count *= t.size[d];
  }
  return t;
}

static inline MaybeTensor maybe(const Tensor& t) { return MaybeTensor{t}; }

// masked_adamw_ of the CPU core, on tensors that have their gradients and settings.
static inline bool step_on_cpu(const std::vector<AdamWTensor>& tensors, bool maximize,
                               double inv_scale, int threads) {
  std::vector<KnownTensor> known;
  std::vector<AdamWSettings> settings;
  std::vector<uintptr_t> grads;
  for (const AdamWTensor& t : tensors) {
    const auto lr_at = reinterpret_cast<uintptr_t>(t.lr_at);
    known.push_back({t, kHost});
    grads.push_back(reinterpret_cast<uintptr_t>(t.grad));
    settings.push_back({t.lr, t.beta1, t.beta2, t.eps, t.weight_decay, lr_at});
  }
  std::vector<const KnownTensor*> each;
  std::vector<const AdamWSettings*> each_settings;
  for (size_t i = 0; i < known.size(); ++i) {
    each.push_back(&known[i]);
    each_settings.push_back(&settings[i]);
  }
  return baseline::masked_adamw_(each, grads, each_settings, maximize, inv_scale, true, threads);
}

static inline Selection selection_of(const Layout& layout) {
  const DType dtype = layout.index_bits == 64 ? kInt64 : kInt32;
  void* index = const_cast<void*>(layout.index);
  const bool pairs = layout.kind == kBlocks;
  const Tensor t = pairs ? view(index, dtype, {layout.n, 2}) : view(index, dtype, {layout.n});
  return Selection{layout.kind, t, layout.block_h, layout.block_w};
}

}  // namespace sparse_ft
