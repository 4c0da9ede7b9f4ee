"""selected_wgrad: the weight gradient at the selected entries only, `grad_outputᵀ · input` in the
compact layout.
"""

import torch
from torch import Tensor

from . import _native
from ._registry import Whole, launcher, op
from .layout import STRUCTURES, Layout, as_layout
from .strips import strips


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(torch.float32, dtype)


def _check(grad_output: Tensor, input: Tensor, layout: Layout) -> None:
    for name, operand in (("grad_output", grad_output), ("input", input)):
        if operand.dim() != 2 or not operand.is_floating_point():
            raise ValueError(
                f"{name}: expected floating point [tokens, features], got {operand.dtype}"
                f" {tuple(operand.shape)}"
            )
    if grad_output.size(0) != input.size(0):
        raise ValueError(
            f"input: expected {grad_output.size(0)} tokens as in grad_output, got {input.size(0)}"
        )
    if grad_output.dtype != input.dtype:
        raise TypeError(f"input: expected {grad_output.dtype} as in grad_output, got {input.dtype}")
    layout.check()


def shapes(grad_output: Tensor, input: Tensor, layout: Layout, dtype: torch.dtype | None) -> Tensor:
    """Errors of `selected_wgrad`, and its result without its numbers."""
    _check(grad_output, input, layout)
    shape = layout.values_shape((grad_output.size(1), input.size(1)))
    return grad_output.new_empty(shape, dtype=dtype or _accumulator(grad_output.dtype))


def check_into(values_grad: Tensor, grad_output: Tensor, input: Tensor, layout: Layout) -> None:
    """Errors of `selected_wgrad_`."""
    _check(grad_output, input, layout)
    layout.check_values(values_grad, (grad_output.size(1), input.size(1)), "values_grad")


def _row_major(operand: Tensor) -> Tensor:
    return operand if operand.stride(1) == 1 or operand.size(1) == 1 else operand.contiguous()


def _cpu_into(values_grad: Tensor, grad_output: Tensor, input: Tensor, layout: Layout) -> None:
    _cpu(grad_output, input, layout, values_grad, accumulate=True)


def _cpu(
    grad_output: Tensor, input: Tensor, layout: Layout, values: Tensor, accumulate: bool = False
) -> None:
    layout = layout.compiled()
    _native.require_served(values)
    grad_output, input = _row_major(grad_output), _row_major(input)
    strips_from = STRUCTURES[layout.kind].strips_from
    area = grad_output.size(1) * input.size(1)
    if strips_from is not None and values.numel() > strips_from * area:
        return _write_by_strips(grad_output, input, layout, values, accumulate)
    threads = torch.get_num_threads()
    _native.C.selected_wgrad(grad_output, input, layout, values, accumulate, threads)


def _write_by_strips(
    grad_output: Tensor, input: Tensor, layout: Layout, values: Tensor, accumulate: bool
) -> None:
    """Strips of the dense product, each dropped once its entries are gathered: the same bits for
    any number of threads.
    """
    index, columns, threads = layout.index, input.size(1), torch.get_num_threads()
    everything = Layout("all", index[:0])
    for rows, some in strips(index, grad_output.size(1), columns):
        strip = input.new_empty(rows.stop - rows.start, columns, dtype=_accumulator(input.dtype))
        part = grad_output[:, rows]
        _native.C.selected_wgrad(part, input, everything, strip, False, threads)
        taken = torch.empty_like(values[some]) if accumulate else values[some]
        first = rows.start * columns  # the index counts from the first row of the matrix
        _native.C.gather_selected(strip, Layout(layout.kind, index[some]), taken, first, threads)
        if accumulate:
            values[some] += taken


def _triton(
    grad_output: Tensor, input: Tensor, layout: Layout, dtype: torch.dtype | None
) -> Tensor:
    _require_product(layout)
    launch = launcher("selected_wgrad.selected_wgrad_triton")
    return launch(grad_output, input, *layout, dtype=dtype or _accumulator(grad_output.dtype))


def _triton_into(values_grad: Tensor, grad_output: Tensor, input: Tensor, layout: Layout) -> None:
    _require_product(layout)
    launcher("selected_wgrad.selected_wgrad_triton_")(values_grad, grad_output, input, *layout)


def _require_product(layout: Layout) -> None:
    if not STRUCTURES[layout.kind].product_in_triton:
        raise _native.Unserved(layout.kind)


@op(
    "selected_wgrad(Tensor grad_output, Tensor input, str kind, Tensor index, int block_h, int"
    " block_w, *, ScalarType? dtype=None) -> Tensor values",
    shapes=shapes,
    cpu=_cpu,
    triton=Whole(_triton),
)
def selected_wgrad(
    grad_output: Tensor,
    input: Tensor,
    kind: str | Layout,
    index: Tensor | None = None,
    block_h: int = 1,
    block_w: int = 1,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`gather_selected(grad_output.T @ input, …)` without the dense product.

    grad_output: [T, rows]. input: [T, columns]; for kind "columns" it may hold only the selected
    columns, [T, C]. Both of one floating dtype. Accumulates in fp32 (fp64 for fp64). dtype: of the
    result, default that of the accumulator. Returns values-shaped gradients; the padding of blocks
    is zero. Raises ValueError or TypeError that names the argument.
    """
    layout = as_layout(kind, index, block_h, block_w)
    wide = _accumulator(grad_output.dtype)
    values = layout.structure.product_of(layout, grad_output.to(wide), input.to(wide))
    return values.to(dtype or wide).contiguous()


@op(
    "selected_wgrad_(Tensor(a!) values_grad, Tensor grad_output, Tensor input, str kind, Tensor"
    " index, int block_h, int block_w) -> ()",
    shapes=check_into,
    cpu=_cpu_into,
    triton=_triton_into,
)
def selected_wgrad_(
    values_grad: Tensor,
    grad_output: Tensor,
    input: Tensor,
    kind: str | Layout,
    index: Tensor | None = None,
    block_h: int = 1,
    block_w: int = 1,
) -> None:
    """`values_grad += selected_wgrad(…)` in place, without the intermediate.

    Shapes and errors as in `selected_wgrad`.
    """
    layout = as_layout(kind, index, block_h, block_w)
    wide = _accumulator(grad_output.dtype)
    values_grad += layout.structure.product_of(layout, grad_output.to(wide), input.to(wide))
