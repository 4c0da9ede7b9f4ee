// The gradient of an input that was normalised by fixed statistics: every channel by two numbers, in one pass over memory; of what a
// ReLU after it let through, by its bits.
#include <vector>

#include "bits.h"
#include "ops.h"

namespace sparse_ft {
namespace {

constexpr double kNanoseconds = 0.4;  // an element takes in the third-level cache, where activations are

template <class T>
struct Factors {
  std::vector<T> rstd, weight;  // [channels]; weight is 1 where there is none
};

// 1 / sqrt(variance + eps) in fp64, rounded once, as torch has it on the CPU.
template <class T>
Factors<T> factors_of(const ChannelOperands& n) {
  std::vector<double> variance(n.channels);
  Factors<T> f{std::vector<T>(n.channels), std::vector<T>(n.channels, T(1))};
  convert_any(variance.data(), kFloat64, n.variance.data, n.variance.dtype, n.channels);
  for (int64_t c = 0; c < n.channels; ++c) f.rstd[c] = static_cast<T>(1 / __builtin_sqrt(variance[c] + n.eps));
  if (n.weight.data) convert_any(f.weight.data(), sizeof(T) == 8 ? kFloat64 : kFloat32, n.weight.data, n.weight.dtype, n.channels);
  return f;
}

template <class T>
void one_channel_run(const T* grad, T rstd, T weight, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = grad[i] * rstd * weight;
}

template <class T>
void channels_run(const T* grad, const T* __restrict rstd, const T* __restrict weight, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = grad[i] * rstd[i] * weight[i];
}

}  // namespace

namespace SFT_VARIANT {

// positive: one bit an element, in the order of memory; null where all pass.
void batch_norm_backward(const ChannelOperands& n, const void* grad_output, DType dtype, const uint8_t* positive, void* grad_input,
                         int threads) {
  with_dtype(dtype, [&](auto stored) {
    using Stored = decltype(stored);
    using T = Wide<Stored>;
    const Factors<T> factors = factors_of<T>(n);
    const bool last = n.inner == 1;  // the channels lie side by side
    const int64_t columns = last ? n.channels : n.inner, count = n.outer * n.channels * n.inner;
    auto* to = static_cast<Stored*>(grad_input);
    // from: the gradient of elements begin …
    const auto multiply = [&](const Stored* from, int64_t begin, int64_t end) {
      Widened<Stored> grad, result;
      for_each_row_piece(begin, end, columns, [&](int64_t k, int64_t row, int64_t column, int64_t size) {
        const T* g = grad.load(from + (k - begin), size);
        T* y = result.target(to + k);
        if (last) {
          channels_run(g, &factors.rstd[column], &factors.weight[column], y, size);
        } else {
          one_channel_run(g, factors.rstd[row % n.channels], factors.weight[row % n.channels], y, size);
        }
        result.finish(to + k, size);
      });
    };
    const auto* from = static_cast<const Stored*>(grad_output);
    for_each_chunk(count, team_for(count * kNanoseconds, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      if (!positive) return multiply(from + chunk_begin, chunk_begin, chunk_end);
      Stored passed[kPiece];
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        let_through(from + begin, positive + begin / 8, Wide<Stored>(1), passed, end - begin);
        multiply(passed, begin, end);
      });
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
