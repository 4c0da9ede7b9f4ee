// One AdamW step over all tensors in one pass: a chunk of a tensor is loaded, updated, stored and written through into the
// weight while it sits in the first-level cache. The chunks do not depend on the number of threads.
// Compiled with -ffp-contract=off: every variant, and the vector loop and its tail, round alike.
#include "../adamw.h"
#include "../checks.h"
#include "adamw_state.h"
#include "adamw_varied.h"
#include "move.h"
#include "ops.h"

namespace sparse_ft {
namespace {

constexpr int64_t kStepChunk = 16384;  // entries: 8 µs of work or more; with 4096, reading ahead past their ends costs two threads 8 %

// Asks for the four streams line by line as it goes: the hardware's own prefetch stops at the end of every page of 4 KiB. Once inlined, GCC
// forgets that the streams do not overlap, and would look for it at every line: a fifth of the time in the cache.
// Entries [begin, end) of the streams are updated. runs: see `VariedUpdate`.
template <uint64_t kFromExpAvg, class T>
void update_run(const AdamWConstants<T>& constants, const T* __restrict grad, T* __restrict value, T* __restrict exp_avg,
                T* __restrict exp_avg_sq, const WrittenRun* runs, int64_t begin, int64_t end) {
  constexpr int64_t kAhead = 2048 / sizeof(T);  // 1 to 4 KiB ahead measure alike
  const AdamWConstants<T> c = constants;
  const auto update = [&](int64_t j, T* written) {
    T updated = value[j];
    adamw_update(c, kFromExpAvg, grad[j], updated, exp_avg[j], exp_avg_sq[j]);
    value[j] = updated;
    written[j] = updated;
  };
  for (int64_t i = begin; i < end; ++runs) {
    T* written = static_cast<T*>(runs->to);
    const int64_t until = runs->end;
    for (; i + kLine<T> <= until; i += kLine<T>) {
      __builtin_prefetch(grad + i + kAhead);
      __builtin_prefetch(value + i + kAhead);
      __builtin_prefetch(exp_avg + i + kAhead);
      __builtin_prefetch(exp_avg_sq + i + kAhead);
#pragma GCC ivdep
      for (int64_t j = i; j < i + kLine<T>; ++j) update(j, written);
    }
#pragma GCC ivdep
    for (; i < until; ++i) update(i, written);
  }
}

template <class T>
void update_run(const AdamWConstants<T>& c, const T* grad, T* value, T* exp_avg, T* exp_avg_sq, const WrittenRun* runs, int64_t begin,
                int64_t end) {
  if (c.from_exp_avg) update_run<~uint64_t{0}>(c, grad, value, exp_avg, exp_avg_sq, runs, begin, end);
  else update_run<0>(c, grad, value, exp_avg, exp_avg_sq, runs, begin, end);
}

struct Job {
  int64_t first_chunk;
  bool owns_ages;
  Shared<float> single;
  Shared<double> full;
  RandomKey random;
};

// runs: of entries [begin, end); where these are buffered there is one.
template <class T>
void update_in_place(const Shared<T>& shared, const AdamWTensor& tensor, const WrittenRun* runs, int64_t begin, int64_t end) {
  const AdamWConstants<T>& c = shared.constants;
  const Varied<T>& varied = shared.varied;
  if (varied.in_place) return update_streams(c, varied, varied.streams, tensor.variation, runs, 0, begin, end);
  const T* grad = static_cast<const T*>(tensor.grad);
  T *value = static_cast<T*>(tensor.values), *exp_avg = static_cast<T*>(tensor.exp_avg), *exp_avg_sq = static_cast<T*>(tensor.exp_avg_sq);
  if (!is_varied(tensor.variation)) return update_run(c, grad, value, exp_avg, exp_avg_sq, runs, begin, end);
  T* written = static_cast<T*>(runs->to);
  for_each_piece(begin, end, [&](int64_t k, int64_t until) {  // more does not fit into its buffers
    update_varied_apart(shared, tensor.variation, k, grad + k, value + k, exp_avg + k, exp_avg_sq + k, written + k, until - k);
  });
}

// State in fewer bits: widened into buffers, updated there, narrowed.
void update_widened(const AdamWTensor& t, const Job& job, int64_t k, int64_t count, WideState& wide) {
  read_plain(wide.grad, t.grad, t.dtype, k, count);
  read_state(t, k, count, wide);
  const WrittenRun run{count, wide.value};  // the weight is of fewer bits
  if (!is_varied(t.variation)) update_run(job.single.constants, wide.grad, wide.value, wide.exp_avg, wide.exp_avg_sq, &run, 0, count);
  else update_varied_apart(job.single, t.variation, k, wide.grad, wide.value, wide.exp_avg, wide.exp_avg_sq, wide.value, count);
  write_state(t, job.random, k, count, wide);
}

bool is_in_place(const AdamWTensor& t) { return !t.storage.exp_avg_absmax && (t.dtype == kFloat32 || t.dtype == kFloat64); }

void update_entries(const AdamWTensor& tensor, const Job& job, const WrittenRun* runs, int64_t begin, int64_t end, WideState& wide) {
  if (!is_in_place(tensor)) return update_widened(tensor, job, begin, end - begin, wide);
  if (tensor.dtype == kFloat32) update_in_place(job.single, tensor, runs, begin, end);
  else update_in_place(job.full, tensor, runs, begin, end);
}

// What `values` holds after rounding, so that the weight shows it bit for bit. False where an index
// names entries that the matrix has not. These are left out.
bool write_through(const AdamWTensor& tensor, int64_t begin, int64_t end) {
  char* values = static_cast<char*>(tensor.values) + begin * size_of(tensor.dtype);
  if (tensor.dtype == tensor.weight_dtype) return move<Store>(tensor.weight, tensor.weight_dtype, tensor.layout, begin, end, values);
  Piece piece;
  convert_any(&piece, tensor.weight_dtype, values, tensor.dtype, end - begin);
  return move<Store>(tensor.weight, tensor.weight_dtype, tensor.layout, begin, end, &piece);
}

// Adjoining runs that one call updates: what is made for a call, with ages a few tables, its first division waits for.
struct StepRuns {
  static constexpr int64_t kMost = 64;
  WrittenRun run[kMost];
  int64_t count = 0;

  // first: where the first of its entries, the k-th of values, goes in the weight; null: nowhere as it is updated.
  void add(const AdamWTensor& t, int64_t k, int64_t entries, void* first) {
    run[count++] = {k + entries, first ? static_cast<char*>(first) - k * size_of(t.dtype) : t.values};
  }
};

// Whether rows of values are long and, but for edges, lie in the weight as they are: the update writes them to both. To copy them
// afterwards takes 10 to 16 % of a step in the cache: the copy's stores queue up behind those that wait for the last lines' divisions, and
// behind a full queue no line of the next piece begins.
bool has_written_rows(const AdamWTensor& t) {
  constexpr int64_t kShortest = 128;
  return is_in_place(t) && t.weight && t.weight_dtype == t.dtype && row_length(t.layout) >= kShortest;
}

bool is_buffered(const AdamWTensor& t, const Job& job) {
  if (!is_in_place(t)) return true;
  return is_varied(t.variation) && !job.single.varied.in_place && !job.full.varied.in_place;
}

// Of values from `begin` on. Runs but the last have whole lines: in the one in which a row meets the next, the update writes nothing to the
// weight.
StepRuns runs_of_rows(const AdamWTensor& t, int64_t most, int64_t begin, int64_t end) {
  constexpr int64_t kStepLine = kLine<float>;
  const int64_t length = row_length(t.layout);
  StepRuns runs;
  Cursor at = cursor_at(t.layout, begin);
  const auto add = [&](int64_t entries, void* first) {
    entries = smaller(entries, end - begin);
    runs.add(t, begin, entries, first);
    begin += entries;
    at.inner += entries;
    if (begin == end || at.inner < length) return;
    at.inner -= length;
    next_row(t.layout, at);
  };
  while (begin < end && runs.count < most) {
    const int64_t left = length - at.inner;
    if (!in_one_run(t.layout, at, smaller(left, end - begin))) {
      if (!runs.count) runs.add(t, begin, smaller(kPiece, end - begin), nullptr);
      break;
    }
    if (left < kStepLine) add(kStepLine, nullptr);
    else add(left / kStepLine * kStepLine, static_cast<char*>(t.weight) + position(t.layout, at) * size_of(t.dtype));
  }
  return runs;
}

StepRuns runs_at(const AdamWTensor& t, const Job& job, int64_t begin, int64_t end) {
  if (has_written_rows(t)) return runs_of_rows(t, is_buffered(t, job) ? 1 : StepRuns::kMost, begin, end);
  const bool in_one_call = is_in_place(t) && !t.weight;
  StepRuns runs;
  runs.add(t, begin, in_one_call ? end - begin : smaller(kPiece, end - begin), nullptr);
  return runs;
}

bool step_chunk(const AdamWTensor& tensor, const Job& job, int64_t begin, int64_t end) {
  WideState wide;
  bool written = true;
  while (begin < end) {
    const StepRuns runs = runs_at(tensor, job, begin, end);
    update_entries(tensor, job, runs.run, begin, runs.run[runs.count - 1].end, wide);
    for (int64_t i = 0; i < runs.count; begin = runs.run[i++].end)
      if (tensor.weight && runs.run[i].to == tensor.values) written &= write_through(tensor, begin, runs.run[i].end);
  }
  return written;
}

template <class Bits>
bool any_exponent_full(const void* data, int64_t begin, int64_t end, Bits exponent) {
  const Bits* bits = static_cast<const Bits*>(data);
  Bits found = 0;
  for (int64_t i = begin; i < end; ++i) found |= (bits[i] & exponent) == exponent;
  return found != 0;
}

bool any_nonfinite(const void* data, DType dtype, int64_t begin, int64_t end) {
  switch (dtype) {
    case kFloat32: return any_exponent_full<uint32_t>(data, begin, end, 0x7f800000u);
    case kFloat64: return any_exponent_full<uint64_t>(data, begin, end, 0x7ff0000000000000u);
    case kBFloat16: return any_exponent_full<uint16_t>(data, begin, end, 0x7f80u);
    case kFloat16: return any_exponent_full<uint16_t>(data, begin, end, 0x7c00u);
  }
  return false;
}

template <class T>
AdamWAges<T>* ages_of(const AdamWTensor& t, double step, double lr) {
  AdamWAges<T>* ages = new AdamWAges<T>;
  const int64_t generations = ages->generations = t.variation.generations;
  for (int64_t g = 0; g < generations; ++g) {
    const AdamWAge<T> age = adamw_age<T>(step - static_cast<double>(t.variation.births[g]), lr, t.beta1, t.beta2);
    ages->step_size[g] = age.step_size, ages->bias_correction2_sqrt[g] = age.bias_correction2_sqrt;
  }
  // Of generations that no entry should have: they stay as they are. One loop each, in vectors.
  for (int64_t g = generations; g < kGenerations; ++g) ages->step_size[g] = 0;
  for (int64_t g = generations; g < kGenerations; ++g) ages->bias_correction2_sqrt[g] = 1;
  return ages;
}

// The ages that were made last. Their powers take as long as 50 lines of entries: tensors of a step that have them alike share them.
template <class T>
struct MadeAges {
  const AdamWTensor* maker = nullptr;
  double step, lr;
  const AdamWAges<T>* ages;

  bool serve(const AdamWTensor& t, double its_step, double its_lr) const {
    if (!maker || its_step != step || its_lr != lr || t.beta1 != maker->beta1 || t.beta2 != maker->beta2) return false;
    const AdamWVariation &v = t.variation, &made = maker->variation;
    return v.generations == made.generations && !memcmp(v.births, made.births, v.generations * sizeof *v.births);
  }
};

template <class T>
Shared<T> shared_of(const AdamWTensor& t, double step, double inv_scale, bool maximize, MadeAges<T>& last, bool& owns_ages) {
  const double lr = t.lr_at ? static_cast<double>(*t.lr_at) : t.lr;
  const AdamWConstants<T> constants = adamw_constants<T>(step, lr, t.beta1, t.beta2, t.eps, t.weight_decay, inv_scale, maximize);
  if (!t.variation.generation) return {constants, varied_of<T>(t, constants, nullptr)};
  owns_ages = !last.serve(t, step, lr);
  if (owns_ages) last = {&t, step, lr, ages_of<T>(t, step, lr)};
  return {constants, varied_of(t, constants, last.ages)};
}

// Nanoseconds, at least: what an entry costs where everything is in the cache.
double step_cost(const AdamWTensor& tensor) {
  const bool scattered = tensor.weight && is_scattered(tensor.layout.kind);
  return tensor.count * ((scattered ? 2.5 : 0.5) + (tensor.storage.exp_avg_absmax ? 4.0 : 0.0));
}

// Calls f(tensor number, begin, end) for every chunk of every tensor, shared between the threads.
template <class F>
void for_each_step_chunk(const AdamWTensor* tensors, const Job* jobs, int64_t tensor_count, int64_t chunks, int threads, F&& f) {
  int64_t next = 0;
  parallel(threads, [&](int, int) {
    int64_t i = 0;
    for (int64_t chunk; (chunk = take(next)) < chunks;) {
      while (i + 1 < tensor_count && jobs[i + 1].first_chunk <= chunk) ++i;  // chunks come in rising order
      const int64_t begin = (chunk - jobs[i].first_chunk) * kStepChunk;
      f(i, begin, smaller(begin + kStepChunk, tensors[i].count));
    }
  });
}

}  // namespace

namespace SFT_VARIANT {

bool masked_adamw_(Known known, Addresses grads, Settings settings, bool maximize, double inv_scale,
                   bool skip_nonfinite, int threads) {
  const std::vector<AdamWTensor> given = stepping(known, grads, settings, kHost);
  const AdamWTensor* tensors = given.data();
  const int64_t tensor_count = static_cast<int64_t>(given.size());
  for (int64_t i = 0; i < tensor_count; ++i)
    if (tensors[i].weight) check_inside_unless_walked(tensors[i].layout);
  Job* jobs = new Job[tensor_count]{};
  int64_t chunks = 0;
  double cost = 0;
  MadeAges<float> single_ages;
  MadeAges<double> full_ages;
  for (int64_t i = 0; i < tensor_count; ++i) {
    const AdamWTensor& t = tensors[i];
    const double step = static_cast<double>(*t.step) + 1.0;
    jobs[i].first_chunk = chunks;
    if (t.dtype == kFloat64) jobs[i].full = shared_of(t, step, inv_scale, maximize, full_ages, jobs[i].owns_ages);
    else jobs[i].single = shared_of(t, step, inv_scale, maximize, single_ages, jobs[i].owns_ages);
    jobs[i].random = random_key(t.storage.seed, static_cast<uint64_t>(step));
    chunks += (t.count + kStepChunk - 1) / kStepChunk;
    cost += step_cost(t);
  }
  threads = static_cast<int>(smaller(team_for(cost, threads), larger(chunks, 1)));
  bool nonfinite = false, outside = false;
  const auto note = [](bool& what) { __atomic_store_n(&what, true, __ATOMIC_RELAXED); };
  if (skip_nonfinite)
    for_each_step_chunk(tensors, jobs, tensor_count, chunks, threads, [&](int64_t i, int64_t begin, int64_t end) {
      if (any_nonfinite(tensors[i].grad, tensors[i].dtype, begin, end)) note(nonfinite);
    });
  if (!nonfinite) {
    for_each_step_chunk(tensors, jobs, tensor_count, chunks, threads, [&](int64_t i, int64_t begin, int64_t end) {
      if (!step_chunk(tensors[i], jobs[i], begin, end)) note(outside);
    });
    for (int64_t i = 0; i < tensor_count; ++i) *tensors[i].step += 1.0f;
  }
  for (int64_t i = 0; i < tensor_count; ++i)
    if (jobs[i].owns_ages) delete jobs[i].single.varied.ages, delete jobs[i].full.varied.ages;
  delete[] jobs;
  for (int64_t i = 0; outside && i < tensor_count; ++i)
    if (tensors[i].weight) check_inside(tensors[i].layout);
  return nonfinite;
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
