// What of a masked_adamw_ step may differ from entry to entry of one tensor. Shared by host and device.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace sparse_ft {

constexpr int kGenerations = 256;  // at most: a byte tells them apart

// Null where nothing differs.
struct AdamWVariation {
  const uint8_t* generation;  // [count]: entries of one generation have one age
  const float* births;        // [generations]: how many steps the tensor had taken when each began
  int64_t generations;
  const float* factor;      // [count / factor_run]: what the update of so many adjoining entries is multiplied with
  int64_t factor_run;
  const void* origin;  // [count]: weight decay pulls towards it instead of towards zero
  DType origin_dtype;
};

SFT_HD bool is_varied(const AdamWVariation& v) { return v.generation || v.factor || v.origin; }

}  // namespace sparse_ft
