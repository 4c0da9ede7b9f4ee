// act(gate) * up and its gradients.
#include "../checks.h"
#include "gated.h"

namespace sparse_ft {
namespace SFT_VARIANT {

void gated_product(In gate, In up, Activation activation, Out output, int threads) {
  const bool in_order = gate.in_order && up.in_order;
  const Matrix x = matrix_of(gate, in_order);
  const Rows by = rows_like(up, gate, x, in_order);
  check_dtype(up, gate.dtype);
  check_like(output, gate);
  product_of<true>(x, by, gate.dtype, activation, output.data, threads);
}

void gated_product_backward(In grad_output, In gate, In up, Activation activation, Out grad_gate,
                            Out grad_up, int threads) {
  const bool in_order = gate.in_order && up.in_order && grad_output.in_order;
  const Matrix x = matrix_of(gate, in_order);
  const Rows by = rows_like(up, gate, x, in_order);
  check_dtype(up, gate.dtype);
  const Rows grad = rows_like(grad_output, gate, x, in_order);
  check_dtype(grad_output, gate.dtype);
  check_like(grad_gate, gate);
  check_like(grad_up, gate);
  gradients_of<true>(grad, x, by, gate.dtype, activation, grad_gate.data, grad_up.data, threads);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
