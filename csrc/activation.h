// The activations and what backward needs of them, element by element. In float every branch is a select and every
// function a polynomial, so that loops over them vectorise; in double the C library serves. NaN passes through all of them.
#pragma once

#include <cmath>

#include "dtype.h"

namespace sparse_ft {

enum Activation : int { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3 };
constexpr const char* kActivationNames[] = {"silu", "gelu", "gelu_tanh", "relu"};

// a * b + c, rounded once where the instruction set can: asked for by name, a vector loop and its tail round alike.
SFT_HD float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__CUDA_ARCH__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

SFT_HD float magnitude(float x) { return fabsf(x); }
SFT_HD double magnitude(double x) { return fabs(x); }

// exp(x) for -87.3 <= x <= 88.7, within 1 ulp: 2^n * polynomial(r), |r| <= ln(2) / 2 (Cody and Waite).
SFT_HD float exponential_inside(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
  const float shifted = fused(x, 1.44269504f, kRound);
  const float n = shifted - kRound;
  const float r = fused(n, -1.42860677e-6f, fused(n, -0.693145752f, x));  // the first product is exact
  const float square = r * r;  // by pairs of coefficients (Estrin), which need not wait for each other
  const float low = fused(1.66666657e-1f, r, 5.00000000e-1f), middle = fused(8.33345205e-3f, r, 4.16657962e-2f);
  const float high = fused(1.98756910e-4f, r, 1.39819994e-3f);
  const float p = fused(fused(fused(high, square, middle), square, low), square, r) + 1.0f;
  return bits_float(float_bits(p) + (float_bits(shifted) << 23));  // n sits in the low bits of shifted
}

// exp(-t), t >= 0; 0 where it would be subnormal.
SFT_HD float decay(float t) {
  const float e = exponential_inside(t > 87.0f ? -87.0f : -t);
  return t > 87.0f ? 0.0f : e;
}
SFT_HD double decay(double t) { return exp(-t); }

// The normal density at x, and the probability above |x|: the density times Mills' ratio, a rational function within 5e-9 of it.
struct NormalTail {
  float density, beyond;
};
SFT_HD NormalTail normal_tail(float x) {
  const float t = magnitude(x);
  const float bounded = t > 13.0f ? 13.0f : t;
  const float square = bounded * bounded;
  float p = fused(4.03695740e-3f, square, fused(4.00977950e-2f, bounded, 1.81645070e-1f));
  float q = fused(1.01190130e-2f, bounded, 1.00517480e-1f);
  p = fused(p, square, fused(4.36145250e-1f, bounded, 5.00000000e-1f));
  q = fused(q, square, fused(4.65273200e-1f, bounded, 1.19589300e0f));
  q = fused(q, square, fused(1.67017540e0f, bounded, 1.0f));
  const float inside = exponential_inside(-0.5f * square);
  const float e = t > 13.0f ? 0.0f : inside;
  return NormalTail{0.398942280f * e, e * (p / q)};
}

// The logistic function at x, and its derivative, both from exp(-|x|): neither cancels.
template <class T>
struct Logistic {
  T value, slope;
};
template <class T>
SFT_HD Logistic<T> logistic(T x) {
  const T e = decay(magnitude(x));
  const T larger = T(1) / (T(1) + e), smaller = e * larger;
  return Logistic<T>{x < T(0) ? smaller : larger, smaller * larger};
}
// x times the logistic function at y.
template <class T>
SFT_HD T times_logistic(T x, T y) {
  const T e = decay(magnitude(y));
  return (y < T(0) ? x * e : x) / (T(1) + e);
}

// value: act(x). both: act(x) and its derivative there.
template <class T>
struct Both {
  T value, slope;
};

struct Silu {
  template <class T>
  SFT_HD T value(T x) { return times_logistic(x, x); }
  template <class T>
  SFT_HD Both<T> both(T x) {
    const Logistic<T> s = logistic(x);
    return Both<T>{x * s.value, s.value + x * s.slope};
  }
};

struct Gelu {
  SFT_HD float value(float x) {
    const float beyond = normal_tail(x).beyond;
    return x * (x > 0.0f ? 1.0f - beyond : beyond);
  }
  SFT_HD Both<float> both(float x) {
    const NormalTail tail = normal_tail(x);
    const float below = x > 0.0f ? 1.0f - tail.beyond : tail.beyond;
    return Both<float>{x * below, fused(x, tail.density, below)};
  }
  SFT_HD double below(double x) { return 0.5 * erfc(x * -0.70710678118654752440); }
  SFT_HD double value(double x) { return x * below(x); }
  SFT_HD Both<double> both(double x) { return Both<double>{x * below(x), below(x) + x * (0.39894228040143267794 * exp(-0.5 * x * x))}; }
};

// x * logistic(2 u), u = sqrt(2 / pi) * (x + 0.044715 x^3): 0.5 * (1 + tanh(u)) without its cancellation.
struct GeluTanh {
  static constexpr double kLinear = 1.5957691216057307117, kCubic = 0.044715 * kLinear;
  template <class T>
  SFT_HD T value(T x) { return times_logistic(x, x * (T(kLinear) + T(kCubic) * (x * x))); }
  template <class T>
  SFT_HD Both<T> both(T x) {
    const T b = x < T(-20) ? T(-20) : x > T(20) ? T(20) : x;  // the slope is 0 or 1 there, and no square overflows
    const T square = b * b;
    const Logistic<T> s = logistic(b * (T(kLinear) + T(kCubic) * square));
    return Both<T>{x * s.value, s.value + b * s.slope * (T(kLinear) + T(3 * kCubic) * square)};
  }
};

struct Relu {
  template <class T>
  SFT_HD T value(T x) { return x < T(0) ? T(0) : x; }
  template <class T>
  SFT_HD Both<T> both(T x) { return Both<T>{value(x), x <= T(0) ? T(0) : T(1)}; }
};

// Calls f(Act()) with the type of an activation code.
template <class F>
static inline void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case kSilu: return f(Silu());
    case kGelu: return f(Gelu());
    case kGeluTanh: return f(GeluTanh());
    case kRelu: return f(Relu());
  }
}

}  // namespace sparse_ft
