// The tensors of one launch of masked_adamw_, small enough to travel by value as a kernel parameter: a table in device memory would have to
// be copied anew whenever gradients move. What many tensors share (shapes, dtypes, settings) is held once.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>

#include "adamw_format.h"

namespace sparse_ft {

constexpr int kTableTensors = 576;  // seven products in each of 80 layers fit, or 237 to 448 tensors with streams beyond the plain ones
constexpr int kTableFamilies = 48;
constexpr int kParameterBytes = 32764;  // of one launch, since CUDA 12.1 on compute capability 7.0 and later
constexpr int64_t kTableChunks = 0x7fffffff;  // blocks of one launch

// Addresses, and one seed. Those from kPlainStreams on only where the format needs them.
enum Stream : int {
  kValues, kGrad, kExpAvg, kExpAvgSq, kStep, kWeight, kIndex, kPlainStreams,
  kCorrection = kPlainStreams, kSeed, kRoundedStreams,
  kExpAvgAbsmax = kRoundedStreams, kExpAvgSqAbsmax, kStreams,
  // A run of factors is a number, and so are the generations, with the dtype of the origin above them.
  kGeneration = kStreams, kBirths, kFactor, kFactorRun, kOrigin, kCounts, kVariedStreams
};

static inline int streams_of(FormatCode format) {
  return format.varied ? kVariedStreams : format.eight_bit ? kStreams : format.rounding == kToNearest ? kPlainStreams : kRoundedStreams;
}

struct Family {
  union {
    double lr;
    const float* lr_at;  // one number on the device
  };
  double beta1, beta2, eps, weight_decay;
  uint32_t rows, columns, block_h, block_w;
  uint8_t weight_dtype, kind, index_bits, lr_is_at;
  uint8_t unused[4];  // families are compared byte by byte
};

struct AdamWTable {
  int32_t tensors, families, streams;
  FormatCode format;
  uint32_t first_chunk[kTableTensors + 1];  // each block of the launch does one chunk of one tensor
  uint32_t n[kTableTensors];
  uint32_t low[kPlainStreams * kTableTensors];  // [streams, capacity]: addresses and seeds have 48 bits
  uint16_t high[kPlainStreams * kTableTensors];
  uint8_t family[kTableTensors];
  Family family_of[kTableFamilies];
};

struct StepFlags {
  const float* grad_scale;  // one number, or null
  const float* found_inf;   // one number, or null: nonzero, and nothing changes
  bool maximize;
};

static_assert(sizeof(AdamWTable) + sizeof(StepFlags) <= kParameterBytes, "the table does not fit into the parameters of a launch");

SFT_HD int capacity(const AdamWTable& table) { return kPlainStreams * kTableTensors / table.streams; }

// 0 where the table has no such stream.
SFT_HD uint64_t number(const AdamWTable& table, Stream stream, int i) {
  if (stream >= table.streams) return 0;
  const int at = stream * capacity(table) + i;
  return static_cast<uint64_t>(table.high[at]) << 32 | table.low[at];
}

SFT_HD void* address(const AdamWTable& table, Stream stream, int i) {
  return reinterpret_cast<void*>(static_cast<uintptr_t>(number(table, stream, i)));
}

SFT_HD AdamWTensor tensor_at(const AdamWTable& table, int i) {
  const Family& f = table.family_of[table.family[i]];
  const int64_t n = table.n[i];
  AdamWTensor t;
  t.values = address(table, kValues, i);
  t.grad = address(table, kGrad, i);
  t.exp_avg = address(table, kExpAvg, i);
  t.exp_avg_sq = address(table, kExpAvgSq, i);
  t.step = static_cast<float*>(address(table, kStep, i));
  t.weight = address(table, kWeight, i);
  t.dtype = table.format.dtype;
  t.weight_dtype = static_cast<DType>(f.weight_dtype);
  t.layout = Layout{
      static_cast<Kind>(f.kind), address(table, kIndex, i), f.index_bits, n, f.block_h, f.block_w, f.rows, f.columns, 0};
  t.count = t.weight ? values_count(t.layout) : n;
  t.lr_at = f.lr_is_at ? f.lr_at : nullptr;
  t.lr = f.lr_is_at ? 0.0 : f.lr, t.beta1 = f.beta1, t.beta2 = f.beta2, t.eps = f.eps, t.weight_decay = f.weight_decay;
  t.storage.correction = static_cast<int16_t*>(address(table, kCorrection, i));
  t.storage.by_chance = table.format.rounding == kByChance;
  t.storage.seed = number(table, kSeed, i);
  t.storage.exp_avg_absmax = static_cast<float*>(address(table, kExpAvgAbsmax, i));
  t.storage.exp_avg_sq_absmax = static_cast<float*>(address(table, kExpAvgSqAbsmax, i));
  return t;
}

constexpr int kCountBits = 16;

SFT_HD AdamWVariation variation_at(const AdamWTable& table, int i) {
  const uint64_t counts = number(table, kCounts, i);
  AdamWVariation v;
  v.generation = static_cast<const uint8_t*>(address(table, kGeneration, i));
  v.births = static_cast<const float*>(address(table, kBirths, i));
  v.generations = static_cast<int64_t>(counts & ((1u << kCountBits) - 1));
  v.factor = static_cast<const float*>(address(table, kFactor, i));
  v.factor_run = static_cast<int64_t>(number(table, kFactorRun, i));
  v.origin = address(table, kOrigin, i);
  v.origin_dtype = static_cast<DType>(counts >> kCountBits);
  return v;
}

// The tensor that a block works on: the last one that begins at or before it. None is without chunks.
SFT_HD int tensor_of(const AdamWTable& table, uint32_t block) {
  int low = 0, high = table.tensors;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (table.first_chunk[middle] <= block) low = middle;
    else high = middle;
  }
  return low;
}

static inline uint32_t narrow(const char* name, int64_t x) {
  if (x >> 32)
    throw std::invalid_argument(std::string("masked_adamw_cuda_: ") + name + " must be less than 2^32, got " + std::to_string(x));
  return static_cast<uint32_t>(x);
}

static inline Family family_of(const AdamWTensor& t) {
  Family f;
  memset(&f, 0, sizeof f);
  f.lr_is_at = t.lr_at != nullptr;
  if (t.lr_at) f.lr_at = t.lr_at;
  else f.lr = t.lr;
  f.beta1 = t.beta1, f.beta2 = t.beta2, f.eps = t.eps, f.weight_decay = t.weight_decay;
  if (!t.weight) return f;
  f.rows = narrow("rows", t.layout.rows), f.columns = narrow("columns", t.layout.columns);
  f.block_h = narrow("block_h", t.layout.block_h), f.block_w = narrow("block_w", t.layout.block_w);
  f.weight_dtype = static_cast<uint8_t>(t.weight_dtype);
  f.kind = static_cast<uint8_t>(t.layout.kind), f.index_bits = static_cast<uint8_t>(t.layout.index_bits);
  return f;
}

struct AdamWNumbers {
  uint64_t of[kVariedStreams];
};

static inline AdamWNumbers numbers_of(const AdamWTensor& t) {
  const auto number = [](const void* address) { return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(address)); };
  const void* index = t.weight ? t.layout.index : nullptr;
  const AdamWVariation& v = t.variation;
  const uint64_t counts = static_cast<uint64_t>(v.generations) | static_cast<uint64_t>(v.origin_dtype) << kCountBits;
  return AdamWNumbers{{number(t.values), number(t.grad), number(t.exp_avg), number(t.exp_avg_sq), number(t.step), number(t.weight),
                       number(index), number(t.storage.correction), t.storage.seed, number(t.storage.exp_avg_absmax),
                       number(t.storage.exp_avg_sq_absmax), number(v.generation), number(v.births), number(v.factor),
                       static_cast<uint64_t>(v.factor_run), number(v.origin), counts}};
}

// Its number, or the count of families if it is new.
static inline int find_family(const AdamWTable& table, const Family& family) {
  int i = 0;
  while (i < table.families && memcmp(&table.family_of[i], &family, sizeof family)) ++i;
  return i;
}

// False, and nothing changed, where the table is full. chunk: entries a block.
static inline bool add(AdamWTable& table, const AdamWTensor& t, int64_t chunk) {
  const Family family = family_of(t);
  const int known = find_family(table, family), i = table.tensors;
  const int64_t end = (i ? table.first_chunk[i] : 0) + (t.count + chunk - 1) / chunk;
  if (i == capacity(table) || known == kTableFamilies || end > kTableChunks) return false;
  const AdamWNumbers numbers = numbers_of(t);
  for (int s = 0; s < table.streams; ++s) {
    const uint64_t bits = numbers.of[s];
    if (bits >> 48) throw std::invalid_argument("masked_adamw_cuda_: addresses must have at most 48 bits, got " + std::to_string(bits));
    const int at = s * capacity(table) + i;
    table.low[at] = static_cast<uint32_t>(bits);
    table.high[at] = static_cast<uint16_t>(bits >> 32);
  }
  table.n[i] = narrow("n", t.weight ? t.layout.n : t.count);
  table.family[i] = static_cast<uint8_t>(known);
  table.family_of[known] = family;
  if (known == table.families) ++table.families;
  if (!i) table.first_chunk[0] = 0;
  table.first_chunk[i + 1] = static_cast<uint32_t>(end);
  ++table.tensors;
  return true;
}

}  // namespace sparse_ft
