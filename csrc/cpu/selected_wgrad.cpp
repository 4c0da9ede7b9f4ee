#include "block_panels.h"
#include "entry_dots.h"
#include "matrix_panels.h"
#include "panel_gemm.h"
#include "skinny_gemm.h"

namespace sparse_ft {
namespace {

constexpr double kParallelProducts = 1 << 18;  // multiply-adds, some 10 µs of one thread: less is not worth waking another

PanelProblem panel_problem(const WgradOperands& operands, const Layout& layout) {
  const Operand grad_output{operands.grad_output, operands.grad_output_stride}, input{operands.input, operands.input_stride};
  // The operand with the selected side is a: its panels are narrower, so fewer lanes idle when few are selected.
  const bool columns = layout.kind == kColumns;
  return PanelProblem{columns ? input : grad_output, columns ? grad_output : input, operands.dtype, operands.tokens, &layout,
                      operands.compact_input};
}

template <class T>
void wgrad(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads) {
  if (layout.kind == kEntries) return entry_dots<T>(operands, layout, values, values_dtype, accumulate, threads);
  const PanelProblem panels = panel_problem(operands, layout);
  if (fills_panels<T>(layout)) return block_panels<T>(panels, values, values_dtype, accumulate, threads);
  if (is_skinny(layout)) return skinny_gemm<T>(panels, values, values_dtype, accumulate, threads);
  if (fills_matrix<T>(layout, values_dtype)) return matrix_panels<T>(operands, layout, static_cast<T*>(values), accumulate, threads);
  panel_gemm<T>(panels, values, values_dtype, accumulate, threads);
}

}  // namespace

namespace SFT_VARIANT {

void selected_wgrad(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads) {
  const int64_t count = values_count(layout);
  if (count == 0 || (operands.tokens == 0 && accumulate)) return;
  if (operands.tokens == 0)
    return with_dtype(values_dtype, [&](auto v) { memset(values, 0, count * sizeof v); });
  if (static_cast<double>(count) * operands.tokens < kParallelProducts) threads = 1;
  if (operands.dtype == kFloat64) return wgrad<double>(operands, layout, values, values_dtype, accumulate, threads);
  wgrad<float>(operands, layout, values, values_dtype, accumulate, threads);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
