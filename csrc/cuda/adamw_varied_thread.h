// What one thread of the masked_adamw_ launches does where entries have an age, a factor or an origin of their own. Shared by host and
// device.
#pragma once

#include "adamw_thread.h"

namespace sparse_ft {

// What is the same for a block of a launch.
template <class Wide>
struct AdamWVaried {
  AdamWConstants<Wide> constants;
  AdamWVariation variation;
  AdamWAge<Wide> age[kGenerations];  // where there are generations
};

// Of the step to come, as `constants_of`. Numbers that no generation has leave entries as they are.
template <class Wide>
SFT_HD AdamWAge<Wide> age_of(const AdamWTensor& t, const AdamWVariation& v, int generation) {
  if (generation >= v.generations) return AdamWAge<Wide>{0, 1};
  const double step = static_cast<double>(load(t.step)) + 1.0, lr = t.lr_at ? static_cast<double>(load(t.lr_at)) : t.lr;
  return adamw_age<Wide>(step - static_cast<double>(load(v.births + generation)), lr, t.beta1, t.beta2);
}

template <int N, class Wide>
SFT_HD Pack<Wide, N> load_origin(const AdamWVariation& v, int64_t k, int64_t left) {
  switch (v.origin_dtype) {
    case kFloat32: return convert_pack<Wide>(load_pack<N>(static_cast<const float*>(v.origin) + k, left));
    case kFloat64: return convert_pack<Wide>(load_pack<N>(static_cast<const double*>(v.origin) + k, left));
    case kBFloat16: return convert_pack<Wide>(load_pack<N>(static_cast<const BFloat16*>(v.origin) + k, left));
    default: return convert_pack<Wide>(load_pack<N>(static_cast<const Float16*>(v.origin) + k, left));
  }
}

// As `PlainUpdate`, with what varies of the entries of a pack.
template <class F>
struct VariedUpdate {
  const AdamWVaried<typename F::Wide>* varied;
  Pack<uint8_t, F::kPack> generation;
  Pack<float, F::kPack> factor;
  Pack<typename F::Wide, F::kPack> origin;
};

// One division a pack; a run may end within it.
template <int N>
SFT_HD Pack<float, N> load_runs(const AdamWVariation& v, int64_t k, int64_t left) {
  int64_t run = k / v.factor_run, until = (run + 1) * v.factor_run - k;
  Pack<float, N> factor;
  SFT_UNROLL
  for (int i = 0; i < N; ++i) {
    if (i >= until) ++run, until += v.factor_run;
    factor.x[i] = i < left ? load(v.factor + run) : 0.0f;
  }
  return factor;
}

template <class F>
SFT_HD VariedUpdate<F> of_pack(const VariedUpdate<F>& update, int64_t k, int64_t left) {
  constexpr int N = F::kPack;
  const AdamWVariation& v = update.varied->variation;
  VariedUpdate<F> of = update;
  if (v.generation) of.generation = load_pack<N>(v.generation + k, left);
  if (v.factor) of.factor = v.factor_run == 1 ? load_pack<N>(v.factor + k, left) : load_runs<N>(v, k, left);
  if (v.origin) of.origin = load_origin<N, typename F::Wide>(v, k, left);
  return of;
}

template <class F, class Wide>
SFT_HD void step_entry(const VariedUpdate<F>& update, int i, Wide grad, Wide& value, Wide& exp_avg, Wide& exp_avg_sq) {
  const AdamWConstants<Wide>& c = update.varied->constants;
  const AdamWVariation& v = update.varied->variation;
  const AdamWAge<Wide> same{c.step_size, c.bias_correction2_sqrt};
  const AdamWAge<Wide> age = v.generation ? update.varied->age[update.generation.x[i]] : same;
  adamw_update_varied(c, c.from_exp_avg, age, v.factor != nullptr, static_cast<Wide>(update.factor.x[i]), v.origin != nullptr,
                      update.origin.x[i], grad, value, exp_avg, exp_avg_sq);
}

}  // namespace sparse_ft
