// One AdamW step of one element (Loshchilov & Hutter, Decoupled Weight Decay Regularization). Shared by host and device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dtype.h"

namespace sparse_ft {

// What is the same for every element of a tensor, computed once in float64.
template <class T>
struct AdamWConstants {
  T grad_factor;         // 1 / grad_scale, negative when maximizing
  T decay;               // 1 - lr * weight_decay
  T exp_avg_share;       // how far exp_avg goes from its nearer end: see below
  T beta2, one_minus_beta2;
  T step_size;           // lr / (1 - beta1^step)
  T bias_correction2_sqrt;  // sqrt(1 - beta2^step)
  T eps;
  uint64_t from_exp_avg;  // all ones where the nearer end is the old exp_avg, else zero
  T decay_rate;           // lr * weight_decay
};

// What depends on how many steps an entry has taken.
template <class T>
struct AdamWAge {
  T step_size;              // lr / (1 - beta1^age)
  T bias_correction2_sqrt;  // sqrt(1 - beta2^age)
};

template <class T>
SFT_HD AdamWAge<T> adamw_age(double age, double lr, double beta1, double beta2) {
  return AdamWAge<T>{static_cast<T>(lr / (1.0 - pow(beta1, age))), static_cast<T>(sqrt(1.0 - pow(beta2, age)))};
}

// As torch.lerp does, exp_avg goes from the old one by 1 - beta1 of the difference or, where the gradient is nearer, from that by -beta1
// of it: with beta1 = 0 it is the gradient, however large the old one was.
template <class T>
SFT_HD AdamWConstants<T> adamw_constants(double step, double lr, double beta1, double beta2, double eps, double weight_decay,
                                         double inv_scale, bool maximize) {
  const T share = static_cast<T>(1.0 - beta1);
  const bool from_exp_avg = share < static_cast<T>(0.5);
  const AdamWAge<T> age = adamw_age<T>(step, lr, beta1, beta2);
  return AdamWConstants<T>{static_cast<T>(maximize ? -inv_scale : inv_scale),
                           static_cast<T>(1.0 - lr * weight_decay),
                           from_exp_avg ? share : share - static_cast<T>(1.0),
                           static_cast<T>(beta2),
                           static_cast<T>(1.0 - beta2),
                           age.step_size,
                           age.bias_correction2_sqrt,
                           static_cast<T>(eps),
                           from_exp_avg ? ~uint64_t{0} : 0,
                           static_cast<T>(lr * weight_decay)};
}

SFT_HD float square_root(float x) {
#ifdef __CUDA_ARCH__
  return sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}
SFT_HD double square_root(double x) {
#ifdef __CUDA_ARCH__
  return sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

// x where mask is all ones, y where it is zero. Not by a condition: nvcc would keep that one in local memory across the divisions.
SFT_HD float either(uint64_t mask, float x, float y) {
  return bits_float(float_bits(y) ^ ((float_bits(x) ^ float_bits(y)) & static_cast<uint32_t>(mask)));
}
SFT_HD double either(uint64_t mask, double x, double y) {
  uint64_t x_bits, y_bits;
  memcpy(&x_bits, &x, sizeof x);
  memcpy(&y_bits, &y, sizeof y);
  y_bits ^= (x_bits ^ y_bits) & mask;
  memcpy(&y, &y_bits, sizeof y);
  return y;
}

// from_exp_avg: the constants', as an argument because a loop may know it at compile time.
template <class T>
SFT_HD void adamw_update(const AdamWConstants<T>& c, uint64_t from_exp_avg, T grad, T& value, T& exp_avg, T& exp_avg_sq) {
  const T g = grad * c.grad_factor;
  const T m = either(from_exp_avg, exp_avg, g) + (g - exp_avg) * c.exp_avg_share;
  const T v = exp_avg_sq * c.beta2 + g * g * c.one_minus_beta2;
  const T denominator = square_root(v) / c.bias_correction2_sqrt + c.eps;
  value = value * c.decay - c.step_size * m / denominator;
  exp_avg = m;
  exp_avg_sq = v;
}

// Of an entry with an age of its own and, if `scaled`, a factor on its update, the decay included; with `to_origin` that pulls towards
// `origin`. With the tensor's age, factor 1 and origin 0 it is the above, but for the last digit.
template <class T>
SFT_HD void adamw_update_varied(const AdamWConstants<T>& c, uint64_t from_exp_avg, AdamWAge<T> age, bool scaled, T factor, bool to_origin,
                                T origin, T grad, T& value, T& exp_avg, T& exp_avg_sq) {
  const T g = grad * c.grad_factor;
  const T m = either(from_exp_avg, exp_avg, g) + (g - exp_avg) * c.exp_avg_share;
  const T v = exp_avg_sq * c.beta2 + g * g * c.one_minus_beta2;
  const T denominator = square_root(v) / age.bias_correction2_sqrt + c.eps;
  const T decay_rate = scaled ? c.decay_rate * factor : c.decay_rate;
  const T step_size = scaled ? age.step_size * factor : age.step_size;
  const T shrunk = value * (scaled ? T(1) - decay_rate : c.decay);
  const T decayed = to_origin ? value - (value - origin) * decay_rate : shrunk;
  value = decayed - step_size * m / denominator;
  exp_avg = m;
  exp_avg_sq = v;
}

}  // namespace sparse_ft
