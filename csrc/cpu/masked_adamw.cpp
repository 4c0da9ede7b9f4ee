// One AdamW step over all tensors in one pass: a chunk of a tensor is loaded, updated, stored and written through into the
// weight while it sits in the first-level cache. The chunks do not depend on the number of threads.
// Compiled with -ffp-contract=off: every variant, and the vector loop and its tail, round alike.
#include "../adamw.h"
#include "convert.h"
#include "ops.h"
#include "parallel.h"
#include "walk.h"

namespace sparse_ft {
namespace {

constexpr int64_t kChunk = 4096;  // entries: about 5 µs of work
constexpr int64_t kPiece = 256;   // entries a pass: four arrays of them stay in the first-level cache

template <class T, class Weight>
struct WriteThrough {
  Weight* weight;  // [rows, columns]
  const T* values;
  int64_t first;  // values[0] is entry `first`

  void run(int64_t k, int64_t position, int64_t count) const { convert_run(weight + position, values + (k - first), count); }

  template <class Index>
  void indexed(int64_t k, int64_t base, const Index* index, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) weight[base + index[i]] = convert(values[k - first + i], Tag<Weight>());
  }

  void padding(int64_t, int64_t) const {}
};

// Asks for the lines that the write-through of a later piece will touch.
struct Prefetch {
  const char* weight;
  int64_t element_size;
  void run(int64_t, int64_t, int64_t) const {}  // streams are found by the hardware
  template <class Index>
  void indexed(int64_t, int64_t base, const Index* index, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(weight + (base + index[i]) * element_size, 1);
  }
  void padding(int64_t, int64_t) const {}
};

template <class T>
void update_run(const AdamWConstants<T>& constants, const T* __restrict grad, T* __restrict value, T* __restrict exp_avg,
                T* __restrict exp_avg_sq, int64_t count) {
  const AdamWConstants<T> c = constants;
  for (int64_t i = 0; i < count; ++i) adamw_update(c, grad[i], value[i], exp_avg[i], exp_avg_sq[i]);
}

// Updates `count` <= kPiece entries; returns the stored values in T, so that the weight shows what `values` holds, bit for bit.
template <class T>
const T* update_in_place(const AdamWConstants<T>& c, const AdamWTensor& tensor, int64_t k, int64_t count) {
  T* value = static_cast<T*>(tensor.values) + k;
  update_run(c, static_cast<const T*>(tensor.grad) + k, value, static_cast<T*>(tensor.exp_avg) + k, static_cast<T*>(tensor.exp_avg_sq) + k,
             count);
  return value;
}

template <class Stored>
const float* update_buffered(const AdamWConstants<float>& c, const AdamWTensor& tensor, int64_t k, int64_t count,
                             float (&buffer)[4][kPiece]) {
  Stored* value = static_cast<Stored*>(tensor.values) + k;
  Stored* exp_avg = static_cast<Stored*>(tensor.exp_avg) + k;
  Stored* exp_avg_sq = static_cast<Stored*>(tensor.exp_avg_sq) + k;
  convert_run(buffer[0], static_cast<const Stored*>(tensor.grad) + k, count);
  convert_run(buffer[1], value, count);
  convert_run(buffer[2], exp_avg, count);
  convert_run(buffer[3], exp_avg_sq, count);
  update_run(c, buffer[0], buffer[1], buffer[2], buffer[3], count);
  convert_run(value, buffer[1], count);
  convert_run(exp_avg, buffer[2], count);
  convert_run(exp_avg_sq, buffer[3], count);
  convert_run(buffer[1], value, count);
  return buffer[1];
}

constexpr int64_t element_size(DType dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

template <class T, class Update>
void update_chunk(const AdamWTensor& tensor, int64_t begin, int64_t end, Update&& update) {
  const Prefetch prefetch{static_cast<const char*>(tensor.weight), element_size(tensor.weight_dtype)};
  for (int64_t k = begin; k < end; k += kPiece) {
    const int64_t count = smaller(kPiece, end - k);
    if (tensor.weight) walk(tensor.layout, k, k + count, prefetch);
    const T* values = update(k, count);
    if (!tensor.weight) continue;
    with_dtype(tensor.weight_dtype, [&](auto w) {
      using Weight = decltype(w);
      walk(tensor.layout, k, k + count, WriteThrough<T, Weight>{static_cast<Weight*>(tensor.weight), values, k});
    });
  }
}

void step_chunk(const AdamWTensor& tensor, const AdamWConstants<float>& single, const AdamWConstants<double>& full, int64_t begin,
                int64_t end) {
  float buffer[4][kPiece];
  const auto in_float = [&](int64_t k, int64_t n) { return update_in_place(single, tensor, k, n); };
  const auto in_double = [&](int64_t k, int64_t n) { return update_in_place(full, tensor, k, n); };
  const auto from_bfloat16 = [&](int64_t k, int64_t n) { return update_buffered<BFloat16>(single, tensor, k, n, buffer); };
  const auto from_float16 = [&](int64_t k, int64_t n) { return update_buffered<Float16>(single, tensor, k, n, buffer); };
  switch (tensor.dtype) {
    case kFloat32: return update_chunk<float>(tensor, begin, end, in_float);
    case kFloat64: return update_chunk<double>(tensor, begin, end, in_double);
    case kBFloat16: return update_chunk<float>(tensor, begin, end, from_bfloat16);
    case kFloat16: return update_chunk<float>(tensor, begin, end, from_float16);
  }
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

struct Job {
  int64_t first_chunk;
  AdamWConstants<float> single;
  AdamWConstants<double> full;
};

// Calls f(tensor number, begin, end) for every chunk of every tensor, shared between the threads.
template <class F>
void for_each_chunk(const AdamWTensor* tensors, const Job* jobs, int64_t tensor_count, int64_t chunks, int threads, F&& f) {
  int64_t next = 0;
  parallel(static_cast<int>(smaller(threads, (chunks + 3) / 4)), [&](int, int) {
    int64_t i = 0;
    for (int64_t chunk; (chunk = take(next)) < chunks;) {
      while (i + 1 < tensor_count && jobs[i + 1].first_chunk <= chunk) ++i;  // chunks come in rising order
      const int64_t begin = (chunk - jobs[i].first_chunk) * kChunk;
      f(i, begin, smaller(begin + kChunk, tensors[i].count));
    }
  });
}

}  // namespace

namespace SFT_VARIANT {

bool masked_adamw_(const AdamWTensor* tensors, int64_t tensor_count, bool maximize, double inv_scale, bool skip_nonfinite, int threads) {
  Job* jobs = new Job[tensor_count];
  int64_t chunks = 0;
  for (int64_t i = 0; i < tensor_count; ++i) {
    const AdamWTensor& t = tensors[i];
    const double step = static_cast<double>(*t.step) + 1.0;
    jobs[i] = Job{chunks, adamw_constants<float>(step, t.lr, t.beta1, t.beta2, t.eps, t.weight_decay, inv_scale, maximize),
                  adamw_constants<double>(step, t.lr, t.beta1, t.beta2, t.eps, t.weight_decay, inv_scale, maximize)};
    chunks += (t.count + kChunk - 1) / kChunk;
  }
  int found = 0;
  if (skip_nonfinite)
    for_each_chunk(tensors, jobs, tensor_count, chunks, threads, [&](int64_t i, int64_t begin, int64_t end) {
      if (any_nonfinite(tensors[i].grad, tensors[i].dtype, begin, end)) __atomic_store_n(&found, 1, __ATOMIC_RELAXED);
    });
  if (!found) {
    for_each_chunk(tensors, jobs, tensor_count, chunks, threads,
                   [&](int64_t i, int64_t begin, int64_t end) { step_chunk(tensors[i], jobs[i].single, jobs[i].full, begin, end); });
    for (int64_t i = 0; i < tensor_count; ++i) *tensors[i].step += 1.0f;
  }
  delete[] jobs;
  return found != 0;
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
