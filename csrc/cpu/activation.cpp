// An activation and its gradient: a gated product without the product.
#include "../checks.h"
#include "gated.h"

namespace sparse_ft {
namespace SFT_VARIANT {

void activation(In input, Activation activation, Out output, int threads) {
  const Matrix x = matrix_of(input, input.in_order);
  check_like(output, input);
  product_of<false>(x, Rows{}, input.dtype, activation, output.data, threads);
}

void activation_backward(In grad_output, In input, Activation activation, Out grad_input,
                         int threads) {
  const bool in_order = input.in_order && grad_output.in_order;
  const Matrix x = matrix_of(input, in_order);
  const Rows grad = rows_like(grad_output, input, x, in_order);
  check_dtype(grad_output, input.dtype);
  check_like(grad_input, input);
  gradients_of<false>(grad, x, Rows{}, input.dtype, activation, grad_input.data, nullptr, threads);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
