"""selected_wgrad: the weight gradient at the selected entries only, `grad_outputᵀ · input` in the
compact layout.
"""

import torch
from torch import Tensor

from . import _native
from ._common import WHOLE, accumulator
from ._library import HAS_TRITON
from ._registry import Whole, launcher, op
from .layout import STRUCTURES, Layout, Shape, as_layout
from .strips import write_by_strips

# Whole columns of these dtypes the kernels leave to the GPU's library; as they lie where each token
# starts on 16 bytes: in contiguous memory, with a multiple of `WHOLE` features.
_AT_ONCE = (torch.bfloat16, torch.float16) if HAS_TRITON else ()


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
    return grad_output.new_empty(shape, dtype=dtype or accumulator(grad_output.dtype))


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
        return write_by_strips(grad_output, input, layout, values, accumulate)
    threads = torch.get_num_threads()
    _native.C.selected_wgrad(grad_output, input, layout, values, accumulate, threads)


_launch = launcher("selected_wgrad.selected_wgrad_triton")


def _triton(
    grad_output: Tensor, input: Tensor, layout: Layout, dtype: torch.dtype | None
) -> Tensor:
    return _launch(grad_output, input, *layout, dtype=dtype)


def prepare_selected_wgrad(layout: Layout, shape: Shape, dtype: torch.dtype) -> None:
    """Make what `selected_wgrad` looks up of a layout on a GPU, before a product asks for it.

    shape: (rows, columns), features of the two operands; dtype: of both. It waits for the device,
    which a graph that is recorded must not. Does nothing elsewhere.
    """
    index = layout.index
    if type(index) is not Tensor or not index.is_cuda or not HAS_TRITON:
        return
    if STRUCTURES[layout.kind].in_triton:
        launcher("selected_wgrad.prepare_selected_wgrad_triton")(*shape, dtype, *layout)


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
    wide = accumulator(grad_output.dtype)
    values = layout.structure.product_of(layout, grad_output.to(wide), input.to(wide))
    return values.to(dtype or wide).contiguous()


def wgrad_of_kept(grad_output: Tensor, kept: Tensor, layout: Layout) -> Tensor:
    """`selected_wgrad(grad_output, kept, layout)`, the same bits, for a backward: nothing that it
    takes is tracked by autograd.

    Whole columns that a GPU's library multiplies as they lie are handed to it at once, in half of
    the host's time: what the op derives and checks holds of what a layer kept itself. kept: [T, C],
    the features that the layout is about and no others, of one dtype with grad_output.
    """
    if (
        layout.kind == "columns" and kept.is_cuda and kept.dtype in _AT_ONCE
        and kept.size(1) % WHOLE == 0 and kept.numel() and kept.is_contiguous()
        and type(grad_output) is Tensor and grad_output.is_contiguous()
    ):  # fmt: skip
        return torch.mm(grad_output.t(), kept, out_dtype=torch.float32)
    return selected_wgrad(grad_output, kept, layout)


@op(
    "selected_wgrad_(Tensor(a!) values_grad, Tensor grad_output, Tensor input, str kind, Tensor"
    " index, int block_h, int block_w) -> ()",
    shapes=check_into,
    cpu=_cpu_into,
    triton="selected_wgrad.selected_wgrad_triton_",
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
    wide = accumulator(grad_output.dtype)
    values_grad += layout.structure.product_of(layout, grad_output.to(wide), input.to(wide))
