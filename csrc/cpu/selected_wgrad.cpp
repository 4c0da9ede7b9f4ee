#include "../checks.h"
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
  const bool by_columns = is_by_columns(layout.kind);
  return PanelProblem{by_columns ? input : grad_output, by_columns ? grad_output : input, operands.dtype, operands.tokens, &layout,
                      operands.compact_input, by_columns};
}

template <class T>
void wgrad(const WgradOperands& operands, const Layout& layout, void* values, DType values_dtype, bool accumulate, int threads) {
  if (is_listed(layout.kind))
    return entry_dots<T>(operands, layout, values, values_dtype, accumulate, threads);
  if (!has_panels(layout.kind))
    return position_dots<T>(operands, layout, values, values_dtype, accumulate, threads);
  const PanelProblem panels = panel_problem(operands, layout);
  if (fills_panels<T>(layout)) return block_panels<T>(panels, values, values_dtype, accumulate, threads);
  if (is_skinny(layout)) return skinny_gemm<T>(panels, values, values_dtype, accumulate, threads);
  if (fills_matrix<T>(layout, values_dtype)) return matrix_panels<T>(operands, layout, static_cast<T*>(values), accumulate, threads);
  panel_gemm<T>(panels, values, values_dtype, accumulate, threads);
}

}  // namespace

namespace SFT_VARIANT {

void selected_wgrad(In grad_output, In input, Where where, Out values, bool accumulate,
                    int threads) {
  const Matrix a = matrix_of(grad_output, false), b = matrix_of(input, false);
  check_dtype(input, grad_output.dtype);
  check_size(input, 0, a.rows);
  const Layout layout = layout_of(where, a.columns, b.columns);
  const bool compact_input = is_by_columns(layout.kind) && b.columns == lines_of(layout);
  if (!compact_input) check_inside(layout);  // else the caller has chosen the columns already
  const int64_t count = values_count(layout), tokens = a.rows;
  check_floats(values, count);
  if (count == 0 || (tokens == 0 && accumulate)) return;
  if (tokens == 0)
    return with_dtype(values.dtype, [&](auto v) { memset(values.data, 0, count * sizeof v); });
  if (static_cast<double>(count) * tokens < kParallelProducts) threads = 1;
  const WgradOperands operands{a.where.data, a.where.stride, b.where.data, b.where.stride,
                               input.dtype,  tokens,         compact_input};
  const auto run = input.dtype == kFloat64 ? wgrad<double> : wgrad<float>;
  run(operands, layout, values.data, values.dtype, accumulate, threads);
}

}  // namespace SFT_VARIANT
}  // namespace sparse_ft
