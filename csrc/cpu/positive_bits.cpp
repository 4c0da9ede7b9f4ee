// The signs of a tensor, one bit an element, and a gradient let through where the bit is set. Flags are made and used as bytes, which
// vectorises; eight of them are packed into a byte, or spread from it, by one multiplication.
#include "move.h"
#include "ops.h"
#include "wide.h"

namespace sparse_ft {
namespace {

constexpr double kNanoseconds = 0.1;  // an element takes at least, in the cache

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bit k of a byte is the flag in byte k of eight");

// 16-bit floats are compared as integers: positive, and no more than infinity.
bool is_positive(float x) { return x > 0; }
bool is_positive(double x) { return x > 0; }
bool is_positive(BFloat16 x) { return static_cast<uint16_t>(x.bits - 1) < 0x7f80; }
bool is_positive(Float16 x) { return static_cast<uint16_t>(x.bits - 1) < 0x7c00; }

template <class Stored>
void flags_run(const Stored* __restrict input, uint8_t* __restrict flags, int64_t count) {
  for (int64_t i = 0; i < count; ++i) flags[i] = is_positive(input[i]);
}

void pack_run(const uint8_t* flags, uint8_t* __restrict bits, int64_t bytes) {
  for (int64_t b = 0; b < bytes; ++b) {
    uint64_t eight;
    memcpy(&eight, flags + 8 * b, 8);
    bits[b] = static_cast<uint8_t>(eight * 0x0102040810204080u >> 56);
  }
}

void spread_run(const uint8_t* __restrict bits, uint8_t* flags, int64_t bytes) {
  for (int64_t b = 0; b < bytes; ++b) {
    const uint64_t eight = bits[b] * 0x0101010101010101u & 0x8040201008040201u;
    memcpy(flags + 8 * b, &eight, 8);
  }
}

template <class T>
void scale_run(const T* __restrict grad, T scale, T* __restrict scaled, int64_t count) {
  for (int64_t i = 0; i < count; ++i) scaled[i] = grad[i] * scale;
}

// Zero in the bits of the element, so that a gradient that is not finite goes too.
template <class Bits>
void mask_run(const Bits* from, const uint8_t* __restrict flags, Bits* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Bits>(from[i] & -static_cast<Bits>(flags[i] != 0));
}

template <class Stored>
struct BitsOf {
  using type = uint16_t;
};
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

template <class Stored>
void where_piece(const Stored* grad, const uint8_t* flags, Wide<Stored> scale, Stored* output, int64_t count) {
  using Bits = typename BitsOf<Stored>::type;
  const Stored* from = grad;
  if (scale != 1) {
    Widened<Stored> wide, scaled;
    Wide<Stored>* product = scaled.target(output);
    scale_run(wide.load(grad, count), scale, product, count);
    scaled.finish(output, count);
    from = output;
  }
  mask_run(reinterpret_cast<const Bits*>(from), flags, reinterpret_cast<Bits*>(output), count);
}

}  // namespace

namespace SFT_VARIANT {

void positive_bits(const void* input, DType dtype, int64_t count, uint8_t* bits, int threads) {
  with_dtype(dtype, [&](auto stored) {
    const auto* from = static_cast<const decltype(stored)*>(input);
    for_each_chunk(count, team_for(count * kNanoseconds, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        uint8_t flags[kPiece];
        const int64_t bytes = (end - begin + 7) / 8;
        memset(flags + 8 * (bytes - 1), 0, 8);  // the bits past the end
        flags_run(from + begin, flags, end - begin);
        pack_run(flags, bits + begin / 8, bytes);
      });
    });
  });
}

void where_bits(const void* grad, DType dtype, int64_t count, const uint8_t* bits, double scale, void* output, int threads) {
  with_dtype(dtype, [&](auto stored) {
    using Stored = decltype(stored);
    for_each_chunk(count, team_for(count * kNanoseconds, threads), [&](int64_t chunk_begin, int64_t chunk_end) {
      for_each_piece(chunk_begin, chunk_end, [&](int64_t begin, int64_t end) {
        uint8_t flags[kPiece];
        spread_run(bits + begin / 8, flags, (end - begin + 7) / 8);
        where_piece(static_cast<const Stored*>(grad) + begin, flags, static_cast<Wide<Stored>>(scale),
                    static_cast<Stored*>(output) + begin, end - begin);
      });
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
