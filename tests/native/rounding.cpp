// Numbers of float32 through csrc/rounding.h: split and joined again, and rounded by chance with the words that decide either way.
// Which: every upper half of the bits with lower halves about the middle and the ends, and every lower half at the edges of what bfloat16
// and float16 hold; with "all" every one there is (40 s). "plant" forgets the correction, which must turn it red.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/rounding.h"

using namespace sparse_ft;

static void fail(const char* what, uint32_t bits) {
  fprintf(stderr, "rounding: %s, at %08x\n", what, bits);
  exit(2);
}

static void splits(uint32_t bits, bool plant) {
  const float x = bits_float(bits);
  SplitFloat both = split(x);
  if (plant) both.low = 0;
  const float joined = join(both.high, both.low), shown = load_bfloat16(both.high);
  if (x != x) {
    if (joined == joined || shown == shown) fail("NaN is lost", bits);
    return;
  }
  if (float_bits(joined) != bits) fail("split and joined is another number", bits);
  const uint16_t nearest = round_bfloat16(x).bits;
  const bool half = (bits & 0xffffu) == 0x8000u;
  if (both.high.bits != nearest && !(half && both.high.bits == nearest + 1)) fail("not the nearest bfloat16", bits);
}

// The two neighbours of x: what the least and the greatest word make of it.
template <class T>
static void rounds(uint32_t bits, float largest, float (*load)(T)) {
  const float x = bits_float(bits);
  const T low = round_by_chance(x, 0, Tag<T>()), high = round_by_chance(x, 0xffffffffu, Tag<T>());
  const float a = load(low), b = load(high);
  if (x != x) {
    if (a == a || b == b) fail("NaN is lost", bits);
  } else if (fabsf(x) >= largest) {
    if (low.bits != convert(x, Tag<T>()).bits || high.bits != low.bits) fail("beyond the largest, not the nearest", bits);
  } else {
    if (std::signbit(a) != std::signbit(x) || std::signbit(b) != std::signbit(x)) fail("the sign is lost", bits);
    if (fabsf(a) > fabsf(x)) fail("above it", bits);
    const double units = fabs(static_cast<double>(x)) * 16777216.0, chance = units - floor(units);
    if (largest == 65504.0f && units < 1024 && chance < 1 / 16777216.0) return;  // no word decides for it
    if (a == x ? high.bits != low.bits : high.bits != low.bits + 1) fail("not its neighbours", bits);
    if (fabsf(b) < fabsf(x)) fail("below it", bits);
  }
}

static void check(uint32_t bits, bool plant) {
  splits(bits, plant);
  rounds<BFloat16>(bits, bits_float(0x7f7f0000u), load_bfloat16);
  rounds<Float16>(bits, 65504.0f, load_float16);
}

int main(int argc, char** argv) {
  const bool all = argc > 1 && !strcmp(argv[1], "all"), plant = argc > 1 && !strcmp(argv[1], "plant");
  const uint32_t edges[] = {0x0000, 0x0001, 0x007f, 0x0080, 0x3380, 0x387f, 0x3880, 0x3f80, 0x477f, 0x4780, 0x7f7e, 0x7f7f, 0x7f80, 0x7fff};
  for (uint32_t high = 0; high < 0x10000; ++high) {
    bool edge = all;
    for (uint32_t e : edges) edge |= (high & 0x7fff) == e;
    for (uint32_t low = 0; low < 0x10000; ++low)
      if (edge || low < 3 || low > 0xfffc || (low > 0x7ffc && low < 0x8003) || low % 0x1000 == 0) check(high << 16 | low, plant);
  }
  puts("every number is what it should be");
  return 0;
}
