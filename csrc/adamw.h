// One AdamW step of one element (Loshchilov & Hutter, Decoupled Weight Decay Regularization). Shared by host and device.
#pragma once

#include <cmath>

#include "dtype.h"

namespace sparse_ft {

// What is the same for every element of a tensor, computed once in float64.
template <class T>
struct AdamWConstants {
  T grad_factor;         // 1 / grad_scale, negative when maximizing
  T decay;               // 1 - lr * weight_decay
  T one_minus_beta1;
  T beta2, one_minus_beta2;
  T step_size;           // lr / (1 - beta1^step)
  T bias_correction2_sqrt;  // sqrt(1 - beta2^step)
  T eps;
};

template <class T>
SFT_HD AdamWConstants<T> adamw_constants(double step, double lr, double beta1, double beta2, double eps, double weight_decay,
                                         double inv_scale, bool maximize) {
  return AdamWConstants<T>{static_cast<T>(maximize ? -inv_scale : inv_scale),
                           static_cast<T>(1.0 - lr * weight_decay),
                           static_cast<T>(1.0 - beta1),
                           static_cast<T>(beta2),
                           static_cast<T>(1.0 - beta2),
                           static_cast<T>(lr / (1.0 - pow(beta1, step))),
                           static_cast<T>(sqrt(1.0 - pow(beta2, step))),
                           static_cast<T>(eps)};
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

template <class T>
SFT_HD void adamw_update(const AdamWConstants<T>& c, T grad, T& value, T& exp_avg, T& exp_avg_sq) {
  const T g = grad * c.grad_factor;
  const T m = exp_avg + (g - exp_avg) * c.one_minus_beta1;
  const T v = exp_avg_sq * c.beta2 + g * g * c.one_minus_beta2;
  const T denominator = square_root(v) / c.bias_correction2_sqrt + c.eps;
  value = value * c.decay - c.step_size * m / denominator;
  exp_avg = m;
  exp_avg_sq = v;
}

}  // namespace sparse_ft
