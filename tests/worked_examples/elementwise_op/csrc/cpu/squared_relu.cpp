// The square of ReLU.
#include "../checks.h"
#include "move.h"
#include "ops.h"
#include "parallel.h"

namespace sparse_ft {
namespace SFT_VARIANT {

void squared_relu(In input, Out output, int threads) {
  check_floats(input, input.count);
  check_like(output, input);
  with_dtype(input.dtype, [&](auto stored) {
    using Stored = decltype(stored);
    using Wide = typename Compute<Stored, float>::type;
    const Stored* from = data_of<const Stored>(input);
    Stored* to = data_of<Stored>(output);
    for_each_chunk(input.count, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Wide x = convert(from[i], Tag<Wide>());
        const Wide relu = x < 0 ? 0 : x;  // NaN passes
        to[i] = convert(relu * relu, Tag<Stored>());
      }
    });
  });
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
