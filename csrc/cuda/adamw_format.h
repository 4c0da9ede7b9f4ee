// How the tensors of one masked_adamw_ launch are stored, as a type: kernels are compiled for each. Shared by host and device.
#pragma once

#include <type_traits>

#include "../cpu/ops.h"
#include "../quantize.h"
#include "pack.h"

namespace sparse_ft {

enum Rounding : uint8_t { kToNearest, kByChance, kCorrected };

constexpr int kAdamWThreads = 256;
// A block begins with a search of the table and two powers in float64, about as long as a pass takes.
constexpr int kPasses = 4;

// T: of values and gradient. EightBit: moments are codes, and threads beside each other share a block of them.
template <class T, Rounding R = kToNearest, bool EightBit = false>
struct Format {
  using Value = T;
  using Wide = typename Compute<T, T>::type;
  using Moment = std::conditional_t<EightBit, uint8_t, std::conditional_t<R == kCorrected, float, T>>;
  static constexpr Rounding kRounding = R;
  static constexpr bool kEightBit = EightBit;
  static constexpr int kPack = 16 / static_cast<int>(sizeof(T));
  // Packs a thread: with four streams and an index, ten 128-bit loads in flight. One where that would take too many registers.
  static constexpr int kGroups = sizeof(T) == 4 && !EightBit ? 2 : 1;
  // Blocks a processor, at least: three keep 120 KiB of loads in flight with four bytes a value. Random words, and moments that wait for
  // their absmax, take registers that ptxas would spill for a third.
  static constexpr int kBlocks = R == kByChance || (EightBit && sizeof(T) == 2) ? 2 : 3;
  static constexpr int kLanes = kQuantBlock / kPack;  // threads a block of codes
  static constexpr int64_t kPass = kAdamWThreads * kGroups * kPack;  // entries that a block holds at once
  static constexpr int64_t kChunk = kPasses * kPass;
};

struct FormatCode {
  DType dtype;
  Rounding rounding;
  bool eight_bit;
  bool varied;  // whether entries have an age, a factor or an origin of their own
};

SFT_HD bool same(FormatCode a, FormatCode b) {
  return a.dtype == b.dtype && a.rounding == b.rounding && a.eight_bit == b.eight_bit && a.varied == b.varied;
}

static inline FormatCode format_of(const AdamWTensor& t) {
  return FormatCode{t.dtype, t.storage.correction ? kCorrected : t.storage.by_chance ? kByChance : kToNearest,
                    t.storage.exp_avg_absmax != nullptr, is_varied(t.variation)};
}

template <bool EightBit, class F>
static inline void with_moments(FormatCode code, F&& f) {
  if (code.rounding == kCorrected) return f(Format<BFloat16, kCorrected, EightBit>());
  if (code.rounding == kByChance)
    return code.dtype == kBFloat16 ? f(Format<BFloat16, kByChance, EightBit>()) : f(Format<Float16, kByChance, EightBit>());
  with_dtype(code.dtype, [&](auto t) {
    if constexpr (!EightBit || sizeof t < 8) f(Format<decltype(t), kToNearest, EightBit>());
  });
}

// Calls f(Format()) with the format of a code. By chance only 16-bit values are rounded, only bfloat16 has a correction, and moments beside
// float64 are float64.
template <class F>
static inline void with_format(FormatCode code, F&& f) {
  if (code.eight_bit) return with_moments<true>(code, f);
  with_moments<false>(code, f);
}

}  // namespace sparse_ft
