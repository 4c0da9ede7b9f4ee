// How the tensors of one masked_adamw_ launch are stored, as a type: kernels are compiled for each. Shared by host and device.
#pragma once

#include <type_traits>

#include "../cpu/ops.h"
#include "pack.h"

namespace sparse_ft {

enum Rounding : uint8_t { kToNearest, kByChance, kCorrected };

constexpr int kAdamWThreads = 256;
// A block begins with a search of the table and two powers in float64, about as long as a pass takes.
constexpr int kPasses = 4;

// T: of values and gradient.
template <class T, Rounding R = kToNearest>
struct Format {
  using Value = T;
  using Wide = typename Compute<T, T>::type;
  using Moment = std::conditional_t<R == kCorrected, float, T>;
  static constexpr Rounding kRounding = R;
  static constexpr int kPack = 16 / static_cast<int>(sizeof(T));
  // Packs a thread: with four streams and an index, ten 128-bit loads in flight. One where that would take too many registers.
  static constexpr int kGroups = sizeof(T) == 4 ? 2 : 1;
  // Blocks a processor, at least: three keep 120 KiB of loads in flight with four bytes a value. Random words take registers that ptxas
  // would spill for a third.
  static constexpr int kBlocks = R == kByChance ? 2 : 3;
  static constexpr int64_t kPass = kAdamWThreads * kGroups * kPack;  // entries that a block holds at once
  static constexpr int64_t kChunk = kPasses * kPass;
};

struct FormatCode {
  DType dtype;
  Rounding rounding;
};

SFT_HD bool same(FormatCode a, FormatCode b) { return a.dtype == b.dtype && a.rounding == b.rounding; }

static inline FormatCode format_of(const AdamWTensor& t) {
  return FormatCode{t.dtype, t.storage.correction ? kCorrected : t.storage.by_chance ? kByChance : kToNearest};
}

// Calls f(Format()) with the format of a code. By chance only 16-bit values are rounded, and only bfloat16 has a correction.
template <class F>
static inline void with_format(FormatCode code, F&& f) {
  if (code.rounding == kCorrected) return f(Format<BFloat16, kCorrected>());
  if (code.rounding == kByChance) return code.dtype == kBFloat16 ? f(Format<BFloat16, kByChance>()) : f(Format<Float16, kByChance>());
  with_dtype(code.dtype, [&](auto t) { f(Format<decltype(t)>()); });
}

}  // namespace sparse_ft
