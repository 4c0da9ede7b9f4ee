// Runs every thread of every launch of gather_selected, scatter_selected_ and masked_adamw_ on the CPU: the functions that the CUDA kernels
// consist of, over heap buffers of exactly the size that their contract names, for AddressSanitizer to watch. Results are compared with the
// CPU core bit for bit, and writes are counted: each entry that the op owns exactly once, nothing else ever.
// Planted faults, each of which must turn it red: "bounds" an index outside of the matrix, "twice" and "again" a block that runs twice,
// "lanes" an absmax of half the threads that share a block.
#include <cstdio>
#include <cstring>
#include <vector>

static void on_write(const void* address, size_t bytes);
#define SFT_ON_WRITE(address, bytes) on_write(address, bytes)
#include "../../csrc/cuda/adamw_eight_bit.h"
#include "../../csrc/cuda/adamw_varied_thread.h"
#include "../../csrc/cuda/gather_thread.h"
#include "../../csrc/cuda/scatter_thread.h"
#include "counted.h"

namespace {

void gather(const Layout& layout, DType matrix_dtype, DType values_dtype, int64_t offset) {
  Buffer matrix(matrix_dtype, layout.rows * layout.columns, 1, false, offset);
  Buffer values(values_dtype, values_count(layout), 2, false, offset);
  Buffer want(values);
  if (!plant("bounds")) baseline::gather_selected(matrix_of(matrix, layout), selection_of(layout), line_of(want), 0, 1);
  writes.clear();
  with_dtype(matrix_dtype, [&](auto m) {
    with_dtype(values_dtype, [&](auto v) {
      using M = decltype(m);
      using V = decltype(v);
      int64_t blocks = gather_blocks<M, V>(values.count);
      if (blocks > 1) blocks /= 2;  // the threads must stride
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t thread = 0; thread < kGatherThreads; ++thread)
          gather_thread(reinterpret_cast<const M*>(matrix.data), layout, reinterpret_cast<V*>(values.data), values.count, blocks, block,
                        thread);
    });
  });
  expect_same(values, want, "gather");
  expect_writes(values, "values of gather", [](int64_t) { return 1; });
  if (!writes.empty()) fail("gather wrote elsewhere", 0);
}

void scatter(const Selected& selected, DType matrix_dtype, DType values_dtype, ScatterMode mode, int64_t offset) {
  const Layout& layout = selected.layout;
  Buffer matrix(matrix_dtype, layout.rows * layout.columns, 1, false, offset);
  Buffer values(values_dtype, values_count(layout), 2, false, offset);
  Buffer want_matrix(matrix), want_values(values);
  baseline::scatter_selected_(matrix_of(want_matrix, layout), selection_of(layout), line_of(want_values), mode, 1);
  writes.clear();
  with_dtype(matrix_dtype, [&](auto m) {
    with_dtype(values_dtype, [&](auto v) {
      using M = decltype(m);
      using V = decltype(v);
      int64_t blocks = gather_blocks<M, V>(values.count);
      if (blocks > 1) blocks /= 2;
      for (int64_t block = 0; block < blocks + plant("again"); ++block)
        for (int64_t thread = 0; thread < kGatherThreads; ++thread)
          scatter_thread(reinterpret_cast<M*>(matrix.data), layout, reinterpret_cast<V*>(values.data), values.count, mode, blocks,
                         block % blocks, thread);
    });
  });
  const std::vector<int> shown = selected.shown();
  expect_writes(matrix, "matrix of scatter", [&](int64_t at) { return shown[at]; });
  expect_writes(values, "values of scatter",
                [&](int64_t k) { return mode == kSwap && (layout.kind == kAll || position(layout, k) != kPadding); });
  expect_same(matrix, want_matrix, "matrix of scatter");
  expect_same(values, want_values, "values of scatter");
  if (!writes.empty()) fail("scatter wrote elsewhere", 0);
}

struct Variety {
  bool aged = false;
  int64_t run = 0;  // entries of one factor; 0: no factors
  bool to_origin = false;
};

constexpr int64_t kBorn = 19;  // generations

struct State {
  Rounding rounding;
  bool eight_bit;
  Buffer value, grad, exp_avg, exp_avg_sq, step, weight, correction, exp_avg_absmax, exp_avg_sq_absmax;
  Buffer generation, births, factor, origin;  // read alone

  static DType moments(FormatCode format) { return format.eight_bit ? kCode : format.rounding == kCorrected ? kFloat32 : format.dtype; }
  static int64_t blocks(FormatCode format, int64_t count) { return format.eight_bit ? (count + kQuantBlock - 1) / kQuantBlock : 0; }

  State(FormatCode format, int64_t count, DType weight_dtype, int64_t weight_count, int64_t offset, int seed)
      : rounding(format.rounding), eight_bit(format.eight_bit), value(format.dtype, count, seed),
        grad(format.dtype, count, seed + 1, false, offset), exp_avg(moments(format), count, seed + 2),
        exp_avg_sq(moments(format), count, seed + 3, true), step(kFloat32, 1, 0), weight(weight_dtype, weight_count, seed + 4),
        correction(kBFloat16, rounding == kCorrected ? count : 0, seed + 5),
        exp_avg_absmax(kFloat32, blocks(format, count), seed + 6, true),
        exp_avg_sq_absmax(kFloat32, blocks(format, count), seed + 7, true), generation(kCode, count, seed, false, offset),
        births(kFloat32, kBorn, 0), factor(kFloat32, count, seed + 8, true, offset),
        origin(seed % 2 ? weight_dtype : format.dtype, count, seed + 9, false, offset) {
    *reinterpret_cast<float*>(step.data) = static_cast<float>(seed % 5);
    for (int64_t i = 0; i < count; ++i) generation.data[i] = static_cast<char>((i * 5 + seed) % kBorn);
    for (int64_t i = 0; i < kBorn; ++i) reinterpret_cast<float*>(births.data)[i] = static_cast<float>(seed % 5 - i);
  }
  // lr_at: what the learning rate is read from; the other one must not count then. beta1: exp_avg starts from either end.
  AdamWTensor tensor(const Layout* layout, const float* lr, double beta1, Variety variety, bool lr_at = false) {
    AdamWStorage storage{};
    if (rounding == kCorrected) storage.correction = reinterpret_cast<int16_t*>(correction.data);
    if (rounding == kByChance) storage.by_chance = true, storage.seed = 0xfedcba987654 - value.count;
    if (eight_bit) storage.exp_avg_absmax = reinterpret_cast<float*>(exp_avg_absmax.data);
    if (eight_bit) storage.exp_avg_sq_absmax = reinterpret_cast<float*>(exp_avg_sq_absmax.data);
    return AdamWTensor{value.data, grad.data, exp_avg.data, exp_avg_sq.data, reinterpret_cast<float*>(step.data), value.count, value.dtype,
                       layout ? weight.data : nullptr, weight.dtype, layout ? *layout : Layout{},
                       lr_at ? 1e3 : static_cast<double>(*lr), beta1, 0.99, 1e-8, 0.1, lr_at ? lr : nullptr, storage,
                       variation(variety)};
  }
  AdamWVariation variation(Variety variety) const {
    AdamWVariation v{};
    if (variety.aged) v.generation = reinterpret_cast<const uint8_t*>(generation.data);
    if (variety.aged) v.births = reinterpret_cast<const float*>(births.data), v.generations = kBorn;
    if (variety.run) v.factor = reinterpret_cast<const float*>(factor.data), v.factor_run = variety.run;
    if (variety.to_origin) v.origin = origin.data, v.origin_dtype = origin.dtype;
    return v;
  }
};

// As the kernel's, with a loop over the threads that share a block of codes where those exchange what they hold.
template <class F, class Update>
void update_eight_bit_chunk(const AdamWBlock& block, const Update& update, RandomKey random) {
  static constexpr MomentMaps maps = moment_maps();
  std::vector<EightBitPass<F>> passes(kAdamWThreads);
  for (int64_t begin = block.begin; begin < block.end; begin += F::kPass) {
    for (int thread = 0; thread < kAdamWThreads; ++thread)
      passes[thread] = begin_eight_bit<F>(block, begin, thread, update, random, maps);
    for (int first = 0; first < kAdamWThreads; first += F::kLanes)
      for (int group = 0; group < F::kGroups; ++group) {
        uint32_t highest_exp_avg = 0, highest_exp_avg_sq = 0;
        for (int lane = 0; lane < F::kLanes / (plant("lanes") ? 2 : 1); ++lane) {
          const WideMoments<F>& moments = passes[first + lane].moments[group];
          highest_exp_avg = higher(highest_exp_avg, moments.highest_exp_avg);
          highest_exp_avg_sq = higher(highest_exp_avg_sq, moments.highest_exp_avg_sq);
        }
        for (int lane = 0; lane < F::kLanes; ++lane) {
          passes[first + lane].moments[group].highest_exp_avg = highest_exp_avg;
          passes[first + lane].moments[group].highest_exp_avg_sq = highest_exp_avg_sq;
        }
      }
    for (int thread = 0; thread < kAdamWThreads; ++thread) end_eight_bit(block, begin, thread, maps, passes[thread]);
  }
}

// What masked_adamw.cu launches, thread by thread.
bool launch(const std::vector<AdamWTensor>& tensors, const StepFlags& flags, float* found_inf, bool skip_nonfinite) {
  const std::vector<AdamWTable> tables = adamw_tables(tensors);
  for (const AdamWTable& table : tables)
    with_format(table.format, [&](auto f) {
      using F = decltype(f);
      for (uint32_t b = 0; skip_nonfinite && b < blocks_of(table); ++b) {
        const AdamWBlock block = block_at<F>(table, b);
        for (int thread = 0; thread < kAdamWThreads; ++thread)
          if (any_nonfinite<F>(block, thread)) *found_inf = 1;
      }
    });
  for (const AdamWTable& table : tables)
    with_format(table.format, [&](auto f) {
      using F = decltype(f);
      for (uint32_t b = 0; !found_nonfinite(flags) && b < blocks_of(table) + plant("twice"); ++b) {
        const AdamWBlock block = block_at<F>(table, b < blocks_of(table) ? b : 0);
        const auto constants = constants_of<typename F::Wide>(block.tensor, flags);
        const RandomKey random = random_of(block.tensor);
        const auto update = [&](const auto& how) {
          if constexpr (F::kEightBit) update_eight_bit_chunk<F>(block, how, random);
          else
            for (int thread = 0; thread < kAdamWThreads; ++thread) update_chunk<F>(block, thread, how, random);
        };
        if (!table.format.varied) {
          update(PlainUpdate<F>{&constants});
          continue;
        }
        AdamWVaried<typename F::Wide> varied{constants, variation_at(table, tensor_of(table, b < blocks_of(table) ? b : 0)), {}};
        for (int generation = 0; varied.variation.generation && generation < kGenerations; ++generation)
          varied.age[generation] = age_of<typename F::Wide>(block.tensor, varied.variation, generation);
        update(VariedUpdate<F>{&varied, {}, {}, {}});
      }
    });
  for (const StepTable& steps : step_tables(tensors))
    for (int i = 0; i < (steps.tensors + kAdamWThreads - 1) / kAdamWThreads * kAdamWThreads; ++i) advance_step(steps, flags, i);
  return found_nonfinite(flags);
}

struct Tensor {
  DType dtype;
  const Selected* through;  // or null: `count` entries
  DType weight_dtype;
  int64_t count, offset;
  Rounding rounding = kToNearest;
  bool eight_bit = false;
  Variety variety = {};
};

void adamw(const std::vector<Tensor>& made, bool maximize, const float* grad_scale, bool nonfinite) {
  std::vector<State*> got, want;
  std::vector<AdamWTensor> tensors, host;
  const float lr[] = {0.01f, 0.02f, 0.03f};
  const double beta1[] = {0.9, 0.9, 0.0, 0.3};
  for (size_t i = 0; i < made.size(); ++i) {
    const Tensor& m = made[i];
    const Layout* layout = m.through ? &m.through->layout : nullptr;
    const int64_t count = layout ? values_count(*layout) : m.count, weight = layout ? layout->rows * layout->columns : 0;
    const FormatCode format{m.dtype, m.rounding, m.eight_bit, false};
    got.push_back(new State(format, count, m.weight_dtype, weight, m.offset, static_cast<int>(i)));
    if (nonfinite && i + 1 == made.size()) memset(got[i]->grad.data + got[i]->grad.bytes() - size_of(m.dtype), 0xff, size_of(m.dtype));
    want.push_back(new State(*got[i]));
    tensors.push_back(got[i]->tensor(layout, lr + i % 3, beta1[i % 4], m.variety, i % 2));
    host.push_back(want[i]->tensor(layout, lr + i % 3, beta1[i % 4], m.variety));
  }
  float found_inf = 0;
  const double inv_scale = grad_scale ? 1.0 / static_cast<double>(*grad_scale) : 1.0;
  writes.clear();
  const bool found = launch(tensors, StepFlags{grad_scale, &found_inf, maximize}, &found_inf, true);
  if (found != step_on_cpu(host, maximize, inv_scale, 1) || found != nonfinite)
    fail("found_inf", found);
  for (size_t i = 0; i < made.size(); ++i) {
    const auto once = [&](int64_t) { return found ? 0 : 1; };
    const auto never = [](int64_t) { return 0; };
    const std::vector<int> shown = made[i].through ? made[i].through->shown() : std::vector<int>();
    expect_writes(got[i]->value, "values", once);
    expect_writes(got[i]->exp_avg, "exp_avg", once);
    expect_writes(got[i]->exp_avg_sq, "exp_avg_sq", once);
    expect_writes(got[i]->correction, "correction", once);
    expect_writes(got[i]->exp_avg_absmax, "exp_avg_absmax", once);
    expect_writes(got[i]->exp_avg_sq_absmax, "exp_avg_sq_absmax", once);
    expect_writes(got[i]->step, "step", once);
    expect_writes(got[i]->grad, "grad", never);
    expect_writes(got[i]->weight, "weight", [&](int64_t at) { return found ? 0 : shown[at]; });
    expect_same(got[i]->value, want[i]->value, "values");
    expect_same(got[i]->exp_avg, want[i]->exp_avg, "exp_avg");
    expect_same(got[i]->exp_avg_sq, want[i]->exp_avg_sq, "exp_avg_sq");
    expect_same(got[i]->correction, want[i]->correction, "correction");
    expect_same(got[i]->exp_avg_absmax, want[i]->exp_avg_absmax, "exp_avg_absmax");
    expect_same(got[i]->exp_avg_sq_absmax, want[i]->exp_avg_sq_absmax, "exp_avg_sq_absmax");
    expect_same(got[i]->step, want[i]->step, "step");
    expect_same(got[i]->weight, want[i]->weight, "weight");
    delete got[i];
    delete want[i];
  }
  if (!writes.empty()) fail("masked_adamw_ wrote elsewhere", 0);
}

struct Stored {
  DType dtype;
  Rounding rounding;
  bool eight_bit;
};
constexpr Stored kStored[] = {{kBFloat16, kByChance, false}, {kFloat16, kByChance, false}, {kBFloat16, kCorrected, false},
                              {kFloat32, kToNearest, true},  {kBFloat16, kToNearest, true}, {kFloat16, kToNearest, true},
                              {kBFloat16, kByChance, true},  {kFloat16, kByChance, true},   {kBFloat16, kCorrected, true}};
constexpr int kStoredCount = sizeof kStored / sizeof *kStored;
constexpr DType kDTypes[] = {kFloat32, kFloat64, kBFloat16, kFloat16};

void every_dtype(const Selected& selected) {
  for (DType a : kDTypes)
    for (DType b : kDTypes) {
      for (int64_t offset : {0, 1}) {
        gather(selected.layout, a, b, offset);
        for (ScatterMode mode : {kCopy, kAdd, kSwap})
          if (mode != kSwap || a == b) scatter(selected, a, b, mode, offset);
      }
      adamw({{a, &selected, b, 0, 0}, {a, &selected, b, 0, 1}}, false, nullptr, false);
    }
  for (auto [dtype, rounding, eight_bit] : kStored)
    for (DType b : {dtype, kFloat32})
      adamw({{dtype, &selected, b, 0, 0, rounding, eight_bit}, {dtype, &selected, b, 0, 1, rounding, eight_bit}}, false, nullptr, false);
}

// Entries with ages, factors and origins of their own, in every format; more of them than a table of varied tensors holds.
void varied() {
  const Selected rows(kRows, 32, 7, 13, 1, 1), entries(kEntries, 64, 9, 7, 1, 1);
  const Variety varieties[] = {{true, 0, false}, {false, 1, false}, {false, 13, false}, {false, 0, true}, {true, 1, true}, {true, 3, true}};
  std::vector<Tensor> made;
  int i = 0;
  for (const Variety& variety : varieties)
    for (int64_t offset : {0, 1})
      for (const Selected* through : {&rows, &entries, static_cast<const Selected*>(nullptr)}) {
        for (DType dtype : kDTypes) made.push_back({dtype, through, kDTypes[i++ % 4], 47, offset, kToNearest, false, variety});
        for (auto [dtype, rounding, eight_bit] : kStored)
          made.push_back({dtype, through, kDTypes[i++ % 4], 301, offset, rounding, eight_bit, variety});
      }
  made.push_back({kFloat32, nullptr, kFloat32, Format<float>::kChunk + 5, 0, kToNearest, false, varieties[5]});
  const float scale = 8;
  adamw(made, true, &scale, false);
  adamw(made, false, nullptr, true);
}

// More tensors than a table holds, more settings and dtypes than one launch takes, some of them empty, one longer than a block's chunk.
void many() {
  const Selected rows(kRows, 32, 5, 12, 1, 1), entries(kEntries, 64, 9, 7, 1, 1);
  std::vector<Tensor> made;
  for (int i = 0; i < 2 * kTableTensors; ++i) {
    const Selected* through = i % 3 == 0 ? &rows : i % 3 == 1 ? &entries : nullptr;
    made.push_back({kDTypes[i % 5 == 4 ? 2 : 0], through, kDTypes[i % 4], i % 11, i % 2});
    const Stored stored = kStored[i / 2 % kStoredCount];
    if (i % 2) made.push_back({stored.dtype, through, kDTypes[i % 4], i % 11, i % 2, stored.rounding, stored.eight_bit});
  }
  made.push_back({kFloat32, nullptr, kFloat32, Format<float>::kChunk + 5, 0});
  for (auto [dtype, rounding, eight_bit] : kStored)
    made.push_back({dtype, nullptr, dtype, 8 * kPasses * kAdamWThreads + 5, 0, rounding, eight_bit});
  const float scale = 8;
  adamw(made, true, &scale, false);
  adamw(made, false, nullptr, true);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) planted = argv[1];
  if (*planted) {
    const Selected selected(kEntries, 32, 5, 7, 1, 1);
    if (plant("twice")) adamw({{kFloat32, &selected, kBFloat16, 0, 0}}, false, nullptr, false);
    else if (plant("lanes")) adamw({{kFloat32, nullptr, kFloat32, 500, 0, kToNearest, true}}, false, nullptr, false);
    else if (plant("again")) scatter(selected, kFloat32, kFloat32, kAdd, 0);
    else gather(selected.layout, kFloat32, kFloat32, 0);
    return 0;
  }
  const int64_t shapes[][2] = {{1, 1}, {1, 13}, {11, 1}, {7, 10}, {9, 32}, {33, 74}};
  const int64_t blocks[][2] = {{3, 4}, {2, 16}, {2, 31}};
  int bits = 32;
  for (const auto& shape : shapes) {
    for (Kind kind : {kRows, kColumns, kEntries, kAll}) every_dtype(Selected(kind, bits = 96 - bits, shape[0], shape[1], 1, 1));
    for (const auto& block : blocks) every_dtype(Selected(kBlocks, bits = 96 - bits, shape[0], shape[1], block[0], block[1]));
  }
  const Selected large(kRows, 32, 80, 700, 1, 1);  // more than one block
  gather(large.layout, kBFloat16, kBFloat16, 0);
  scatter(large, kBFloat16, kFloat32, kCopy, 0);
  many();
  varied();
  puts("every thread stayed inside its buffers");
  return 0;
}
