#include "adamw_tensor.h"

#include <string>

#include "checks.h"
#include "quantize.h"

namespace sparse_ft {
namespace {

[[noreturn]] void refuse(const char* name, const std::string& expected) {
  throw std::invalid_argument(std::string(name) + ": expected " + expected);
}

DType moments_dtype(const Tensor& values, bool is_corrected, bool has_codes) {
  if (has_codes) return kUInt8;
  return is_corrected ? kFloat32 : values.dtype;
}

void check_state_like(const Tensor& t, const Tensor& values, DType dtype) {
  check_present(t, values.device);
  check_dtype(t, dtype);
  check_same_layout(t, values);
}

void check_number(const Tensor& t, Device device) {
  check_present(t, device);
  check_dtype(t, kFloat32);
  check_count(t, 1);
}

void check_absmax(const Tensor& t, const Tensor& values) {
  check_present(t, values.device);
  check_dtype(t, kFloat32);
  check_count(t, (values.count + kQuantBlock - 1) / kQuantBlock);
}

void check_storage(const Tensor& values, int64_t seed, bool is_corrected, bool has_codes) {
  const bool has_16_bits = values.dtype == kBFloat16 || values.dtype == kFloat16;
  check_range("seed", seed, -1, (int64_t{1} << 48) - 1);
  if (is_corrected && values.dtype != kBFloat16) refuse("correction", "none beside these values");
  if (is_corrected && seed >= 0) refuse("seed", "-1 with a correction");
  if (seed >= 0 && !has_16_bits) refuse("seed", "-1 with values of more than 16 bits");
  if (has_codes && values.dtype == kFloat64) refuse("exp_avg_absmax", "none with float64 values");
}

// A factor of the first dimension serves as many adjoining entries as the others hold.
AdamWVariation variation_of(const Tensor& values, const MaybeTensor& generation,
                            const MaybeTensor& births, const MaybeTensor& factor,
                            const MaybeTensor& origin) {
  AdamWVariation v{};
  if (is_given(generation) != is_given(births)) refuse("births", "some with a generation alone");
  if (is_given(generation)) {
    check_state_like(generation, values, kUInt8);
    check_present(births, values.device);
    check_dtype(births, kFloat32);
    check_count(births, births.count);
    check_range("births", births.count, 1, kGenerations);
    v.generation = data_of<const uint8_t>(generation);
    v.births = data_of<const float>(births);
    v.generations = births.count;
  }
  if (is_given(factor)) {
    const bool by_first = factor.dim == 1 && values.dim > 1;
    check_present(factor, values.device);
    check_dtype(factor, kFloat32);
    if (by_first) {
      check_count(factor, values.size[0]);
      check_count(values, values.count);  // contiguous
    } else {
      check_state_like(factor, values, kFloat32);
    }
    v.factor = data_of<const float>(factor);
    v.factor_run = by_first && factor.count ? values.count / factor.count : 1;
  }
  if (is_given(origin)) {
    check_floats(origin);
    check_state_like(origin, values, origin.dtype);
    v.origin = origin.data;
    v.origin_dtype = origin.dtype;
  }
  return v;
}

}  // namespace

KnownTensor known_tensor(const Tensor& values, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                         const Tensor& step, int64_t seed, const MaybeTensor& correction,
                         const MaybeTensor& exp_avg_absmax, const MaybeTensor& exp_avg_sq_absmax,
                         const MaybeTensor& generation, const MaybeTensor& births,
                         const MaybeTensor& factor, const MaybeTensor& origin,
                         const MaybeTensor& weight, const Selection* layout) {
  const bool is_corrected = is_given(correction), has_codes = is_given(exp_avg_absmax);
  const Device device = values.device;
  check_present(values, device);
  check_floats(values);
  check_dense(values);
  check_storage(values, seed, is_corrected, has_codes);
  const DType moments = moments_dtype(values, is_corrected, has_codes);
  check_state_like(exp_avg, values, moments);
  check_state_like(exp_avg_sq, values, moments);
  check_number(step, device);
  if (is_corrected) check_state_like(correction, values, kInt16);
  if (has_codes) check_absmax(exp_avg_absmax, values);
  if (has_codes != is_given(exp_avg_sq_absmax)) refuse("exp_avg_sq_absmax", "one with the other");
  if (has_codes) check_absmax(exp_avg_sq_absmax, values);
  KnownTensor known{};
  known.device = device;
  AdamWTensor& t = known.tensor;
  t.values = values.data;
  t.exp_avg = exp_avg.data;
  t.exp_avg_sq = exp_avg_sq.data;
  t.step = data_of<float>(step);
  t.count = values.count;
  t.dtype = values.dtype;
  t.storage.correction = data_of<int16_t>(correction);
  t.storage.by_chance = seed >= 0;
  t.storage.seed = seed >= 0 ? static_cast<uint64_t>(seed) : 0;
  t.storage.exp_avg_absmax = data_of<float>(exp_avg_absmax);
  t.storage.exp_avg_sq_absmax = data_of<float>(exp_avg_sq_absmax);
  t.variation = variation_of(values, generation, births, factor, origin);
  if (!is_given(weight)) return known;
  if (!layout) refuse("layout", "one with a weight");
  check_present(weight, device);
  check_present(layout->index, device);
  t.layout = layout_on(*layout, weight, values);
  t.weight = weight.data;
  t.weight_dtype = weight.dtype;
  return known;
}

std::vector<AdamWTensor> stepping(const std::vector<const KnownTensor*>& tensors,
                                  const std::vector<uintptr_t>& grads,
                                  const std::vector<const AdamWSettings*>& settings,
                                  Device device) {
  const auto count = static_cast<int64_t>(tensors.size());
  check_range("grads", static_cast<int64_t>(grads.size()), count, count);
  check_range("settings", static_cast<int64_t>(settings.size()), count, count);
  std::vector<AdamWTensor> step;
  step.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i] || !settings[i]) refuse("tensors", "no None");
    if (tensors[i]->device != device) refuse("tensors", std::string("all ") + kDeviceNames[device]);
    const AdamWSettings& s = *settings[i];
    AdamWTensor t = tensors[i]->tensor;
    t.grad = reinterpret_cast<const void*>(grads[i]);
    t.lr = s.lr;
    t.beta1 = s.beta1;
    t.beta2 = s.beta2;
    t.eps = s.eps;
    t.weight_decay = s.weight_decay;
    t.lr_at = reinterpret_cast<const float*>(s.lr_at);
    step.push_back(t);
  }
  return step;
}

}  // namespace sparse_ft
