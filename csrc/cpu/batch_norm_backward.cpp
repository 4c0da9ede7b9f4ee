// The gradient of an input that was normalised by fixed statistics: every channel by two numbers, in one pass over memory; of what a
// ReLU after it let through, by its bits.
#include "channels.h"

namespace sparse_ft {
namespace {

template <class T>
struct Factors {
  std::vector<T> rstd, weight;  // [channels]; weight is 1 where there is none
};

// 1 / sqrt(variance + eps) in fp64, rounded once, as torch has it on the CPU.
template <class T>
Factors<T> factors_of(int64_t channels, In variance, MaybeIn weight, double eps) {
  const std::vector<double> variances = widened<double>(variance, channels, 1);
  Factors<T> f{std::vector<T>(channels), widened<T>(weight, channels, 1)};
  for (int64_t c = 0; c < channels; ++c)
    f.rstd[c] = static_cast<T>(1 / __builtin_sqrt(variances[c] + eps));
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

// positive: one bit an element, in the order of memory; without them all pass.
void batch_norm_backward(In grad_output, In variance, MaybeIn weight, double eps, MaybeIn positive,
                         Out grad_input, int threads) {
  const ByChannel n = by_channel(grad_output);
  check_floats(variance, n.channels);
  check_channels(weight, n.channels);
  if (positive.data) check_bits(positive, grad_output.count);
  check_dtype(grad_input, grad_output.dtype);
  check_same_layout(grad_input, grad_output);
  with_dtype(grad_output.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    using T = Wide<Stored>;
    const Factors<T> factors = factors_of<T>(n.channels, variance, weight, eps);
    const bool last = n.inner == 1;  // the channels lie side by side
    const int64_t columns = last ? n.channels : n.inner, count = grad_output.count;
    auto* to = data_of<Stored>(grad_input);
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
    const auto* from = data_of<const Stored>(grad_output);
    for_each_chunk(count, team_for(count * kNanoseconds, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      if (!positive.data) return multiply(from + chunk_begin, chunk_begin, chunk_end);
      Stored passed[kPiece];
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        const uint8_t* bits = data_of<const uint8_t>(positive) + begin / 8;
        let_through(from + begin, bits, Wide<Stored>(1), passed, end - begin);
        multiply(passed, begin, end);
      });
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
