// The signs of a tensor, one bit an element, its ReLU in the same pass, and a gradient let through where the bit is set.
#include "bits.h"
#include "ops.h"

namespace sparse_ft {
namespace {

constexpr double kNanoseconds = 0.4;  // an element takes in the third-level cache, where activations are; the bits alone half of it

}  // namespace

namespace SFT_VARIANT {

void positive_bits(const void* input, DType dtype, int64_t count, uint8_t* bits, void* relu, int threads) {
  with_dtype(dtype, [&](auto stored) {
    using Stored = decltype(stored);
    for_each_chunk(count, team_for(count * (relu ? kNanoseconds : kNanoseconds / 2), threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        bits_piece(static_cast<const Stored*>(input) + begin, bits + begin / 8, relu ? static_cast<Stored*>(relu) + begin : nullptr,
                   end - begin);
      });
    });
  });
}

void where_bits(const void* grad, DType dtype, int64_t count, const uint8_t* bits, double scale, void* output, int threads) {
  with_dtype(dtype, [&](auto stored) {
    using Stored = decltype(stored);
    for_each_chunk(count, team_for(count * kNanoseconds, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        let_through(static_cast<const Stored*>(grad) + begin, bits + begin / 8, static_cast<Wide<Stored>>(scale),
                    static_cast<Stored*>(output) + begin, end - begin);
      });
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
