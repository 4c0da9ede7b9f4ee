// The signs of a tensor, one bit an element, its ReLU in the same pass, and a gradient let through where the bit is set.
#include "../checks.h"
#include "bits.h"
#include "ops.h"

namespace sparse_ft {
namespace {

constexpr double kNanoseconds = 0.4;  // an element takes in the third-level cache, where activations are; the bits alone half of it

}  // namespace

namespace SFT_VARIANT {

// relu: what ReLU of the input is written to, if anything; perhaps the input itself.
void positive_bits(In input, Out bits, MaybeOut relu, int threads) {
  const int64_t count = input.count;
  check_floats(input, count);
  check_bits(bits, count);
  if (relu.data) check_like(relu, input);
  const double nanoseconds = count * (relu.data ? kNanoseconds : kNanoseconds / 2);
  with_dtype(input.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    for_each_chunk(count, team_for(nanoseconds, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        bits_piece(data_of<const Stored>(input) + begin, data_of<uint8_t>(bits) + begin / 8,
                   relu.data ? data_of<Stored>(relu) + begin : nullptr, end - begin);
      });
    });
  });
}

void where_bits(In grad, In bits, double scale, Out output, int threads) {
  const int64_t count = grad.count;
  check_floats(grad, count);
  check_bits(bits, count);
  check_like(output, grad);
  with_dtype(grad.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    const int team = team_for(count * kNanoseconds, threads);
    for_each_chunk(count, team, [&](int64_t chunk_begin, int64_t chunk_end) {
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        let_through(data_of<const Stored>(grad) + begin, data_of<const uint8_t>(bits) + begin / 8,
                    static_cast<Wide<Stored>>(scale), data_of<Stored>(output) + begin, end - begin);
      });
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
