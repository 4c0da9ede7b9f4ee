// The four dtypes of arithmetic, and their conversions on host and device: round to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

// Every function in the shared headers is `static`: the same source is compiled for several instruction sets, and a
// linker that merged two copies could hand AVX-512 code to a machine without it.
#ifdef __CUDACC__
#define SFT_HD __host__ __device__ static inline
#else
#define SFT_HD static inline
#endif

namespace sparse_ft {

enum DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };
// Of indices and bits, which no arithmetic runs on: `with_dtype` does not know them.
constexpr DType kUInt8 = static_cast<DType>(4), kInt16 = static_cast<DType>(5);
constexpr DType kInt32 = static_cast<DType>(6), kInt64 = static_cast<DType>(7);
constexpr DType kOtherDType = static_cast<DType>(8);
// As torch names them, in the order above.
constexpr const char* kDTypeNames[] = {"torch.float32", "torch.float64", "torch.bfloat16",
                                       "torch.float16", "torch.uint8",   "torch.int16",
                                       "torch.int32",   "torch.int64",   "another dtype"};

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

SFT_HD uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
SFT_HD float bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

SFT_HD float load_bfloat16(BFloat16 x) { return bits_float(static_cast<uint32_t>(x.bits) << 16); }

SFT_HD BFloat16 round_bfloat16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;  // keeps the sign, and a payload that lives in the low bits only
  return BFloat16{static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
}

SFT_HD float load_float16(Float16 x) {
#if defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return bits_float(sign | ((magnitude << 13) + 0x38000000u));
  return bits_float(sign | float_bits(static_cast<float>(magnitude) * 5.9604644775390625e-8f));  // subnormal: units of 2^-24
#endif
}

SFT_HD Float16 round_float16(float x) {
#if defined(__F16C__) && !defined(__CUDACC__)
  return Float16{static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = float_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x1ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {
    // Adding 0.5 leaves units of 2^-24 in the low bits, rounded to nearest even by the addition itself.
    half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
  }
  return Float16{static_cast<uint16_t>(sign | half)};
#endif
}

template <class To>
struct Tag {};

SFT_HD float convert(float x, Tag<float>) { return x; }
SFT_HD float convert(double x, Tag<float>) { return static_cast<float>(x); }
SFT_HD float convert(BFloat16 x, Tag<float>) { return load_bfloat16(x); }
SFT_HD float convert(Float16 x, Tag<float>) { return load_float16(x); }
SFT_HD BFloat16 convert(BFloat16 x, Tag<BFloat16>) { return x; }
SFT_HD Float16 convert(Float16 x, Tag<Float16>) { return x; }
SFT_HD double convert(double x, Tag<double>) { return x; }
template <class From>
SFT_HD double convert(From x, Tag<double>) { return static_cast<double>(convert(x, Tag<float>())); }
// From float64 to 16 bits by way of float32, as PyTorch does.
template <class From>
SFT_HD BFloat16 convert(From x, Tag<BFloat16>) { return round_bfloat16(convert(x, Tag<float>())); }
template <class From>
SFT_HD Float16 convert(From x, Tag<Float16>) { return round_float16(convert(x, Tag<float>())); }

// The type arithmetic runs in: float64 if either side is float64, float32 otherwise.
template <class A, class B>
struct Compute {
  using type = float;
};
template <class B>
struct Compute<double, B> {
  using type = double;
};
template <class A>
struct Compute<A, double> {
  using type = double;
};
template <>
struct Compute<double, double> {
  using type = double;
};

// Calls f(T()) with the type of a dtype code.
template <class F>
static inline void with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case kFloat32: return f(float());
    case kFloat64: return f(double());
    case kBFloat16: return f(BFloat16());
    case kFloat16: return f(Float16());
  }
}

}  // namespace sparse_ft
