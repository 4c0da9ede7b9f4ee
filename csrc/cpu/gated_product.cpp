// act(gate) * up and its gradients.
#include "gated.h"

namespace sparse_ft {
namespace SFT_VARIANT {

void gated_product(Rows gate, Rows up, DType dtype, int64_t rows, int64_t columns, Activation activation, void* output, int threads) {
  product_of<true>(gate, up, dtype, rows, columns, activation, output, threads);
}

void gated_product_backward(Rows grad_output, Rows gate, Rows up, DType dtype, int64_t rows, int64_t columns, Activation activation,
                            void* grad_gate, void* grad_up, int threads) {
  gradients_of<true>(grad_output, gate, up, dtype, rows, columns, activation, grad_gate, grad_up, threads);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
