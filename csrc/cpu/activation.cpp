// An activation and its gradient: a gated product without the product.
#include "gated.h"

namespace sparse_ft {
namespace SFT_VARIANT {

void activation(Rows input, DType dtype, int64_t rows, int64_t columns, Activation activation, void* output, int threads) {
  product_of<false>(input, Rows{}, dtype, rows, columns, activation, output, threads);
}

void activation_backward(Rows grad_output, Rows input, DType dtype, int64_t rows, int64_t columns, Activation activation,
                         void* grad_input, int threads) {
  gradients_of<false>(grad_output, input, Rows{}, dtype, rows, columns, activation, grad_input, nullptr, threads);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
