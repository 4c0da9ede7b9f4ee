// BatchNorm by fixed statistics, in place: every channel by one product and one sum; then ReLU and its bits, while a piece is in the
// first-level cache.
#include "channels.h"

namespace sparse_ft {
namespace {

// One rounding where the processor has an instruction for it, as torch's kernels for the CPU have.
template <class T>
T multiply_add(T a, T b, T c) {
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
  if constexpr (sizeof(T) == 8) return __builtin_fma(a, b, c);
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

template <class T>
struct Line {
  std::vector<T> scale, shift;  // [channels]
};

// All in the type of the arithmetic, as torch has it on the CPU.
template <class T>
Line<T> line_of(int64_t channels, In mean, In variance, MaybeIn weight, MaybeIn bias, double eps) {
  const std::vector<T> means = widened<T>(mean, channels, 0);
  const std::vector<T> variances = widened<T>(variance, channels, 1);
  Line<T> line{widened<T>(weight, channels, 1), widened<T>(bias, channels, 0)};
  for (int64_t c = 0; c < channels; ++c) {
    const T rstd = 1 / (sizeof(T) == 8 ? __builtin_sqrt(variances[c] + eps)
                                       : __builtin_sqrtf(variances[c] + static_cast<float>(eps)));
    line.scale[c] *= rstd;
    line.shift[c] = multiply_add(-means[c], line.scale[c], line.shift[c]);
  }
  return line;
}

template <class T>
void one_channel_run(T* data, T scale, T shift, int64_t count) {
  for (int64_t i = 0; i < count; ++i) data[i] = multiply_add(data[i], scale, shift);
}

template <class T>
void channels_run(T* data, const T* __restrict scale, const T* __restrict shift, int64_t count) {
  for (int64_t i = 0; i < count; ++i) data[i] = multiply_add(data[i], scale[i], shift[i]);
}

}  // namespace

namespace SFT_VARIANT {

// bits: where those of ReLU go; without them there is no ReLU.
void batch_norm_(Out input, In mean, In variance, MaybeIn weight, MaybeIn bias, double eps,
                 MaybeOut bits, int threads) {
  const ByChannel n = by_channel(input);
  check_floats(mean, n.channels);
  check_floats(variance, n.channels);
  check_channels(weight, n.channels);
  check_channels(bias, n.channels);
  if (bits.data) check_bits(bits, input.count);
  with_dtype(input.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    using T = Wide<Stored>;
    const Line<T> line = line_of<T>(n.channels, mean, variance, weight, bias, eps);
    const bool last = n.inner == 1;  // the channels lie side by side
    const int64_t columns = last ? n.channels : n.inner, count = input.count;
    auto* data = data_of<Stored>(input);
    const auto normalize = [&](int64_t begin, int64_t end) {
      Widened<Stored> wide;
      for_each_row_piece(begin, end, columns, [&](int64_t k, int64_t row, int64_t column, int64_t size) {
        wide.load(data + k, size);
        T* x = wide.target(data + k);
        if (last) {
          channels_run(x, &line.scale[column], &line.shift[column], size);
        } else {
          one_channel_run(x, line.scale[row % n.channels], line.shift[row % n.channels], size);
        }
        wide.finish(data + k, size);
      });
    };
    for_each_chunk(count, team_for(count * kNanoseconds, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      if (!bits.data) return normalize(chunk_begin, chunk_end);
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        normalize(begin, end);
        bits_piece(data + begin, data_of<uint8_t>(bits) + begin / 8, data + begin, end - begin);
      });
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
