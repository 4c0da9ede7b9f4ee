"""Activations that keep their input, or one bit an element where that is enough, and can make their
output again.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import ops
from .._torch import direct, is_compiling, is_hooked
from ..double_backward import first_order
from ..ops._activations import ACTIVATIONS
from ..ops._channels import in_order
from ..ops._library import plain
from ..rebuild import Handover, remember, select
from .attach import lean_forward_of
from .probe import Case, Child, pattern, stand_in
from .register import lean_for, lean_if

# Elements from which the op beats torch's own, forward and backward together, on one thread and on
# two; below it the host time of a Python Function decides. fp64 stays with torch.
WORTH = {
    torch.float32: {"silu": 2**19, "gelu": 2**19, "gelu_tanh": 2**17},
    torch.bfloat16: {"silu": 2**19, "gelu": 2**18, "gelu_tanh": 2**17},
    torch.float16: {"silu": 2**20, "gelu": 2**18, "gelu_tanh": 2**17},
}


def _remembered(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x), elementwise, whose own node keeps x and nothing else."""
    output = function(x)
    remember(output, lambda x, features=None: function(select(x, features)), (x,))
    return output


def _activated(input: torch.Tensor, name: str) -> torch.Tensor:
    """The activation by the name that the op gives it, in one pass each way where that is faster
    than torch's own.
    """
    if _is_faster(input, name):
        handover = Handover()
        output = _activation(input, name, handover)
        if output.grad_fn is not None:
            handover.to(output.grad_fn)
            remember(output, _remake(name, handover), (input,))
        return output
    return _remembered(ACTIVATIONS[name][0], input)


def _is_faster(input: torch.Tensor, name: str) -> bool:
    served: Any = ops.SERVED["activation"]
    is_native = served["cpu"][0] == "native"
    if input.dtype not in WORTH or not is_native or not plain([input]):
        return False
    # Other layouts are kept by torch's own.
    return input.numel() >= WORTH[input.dtype][name] and input.is_contiguous()


def _remake(name: str, handover: Handover) -> Callable[..., torch.Tensor]:
    """Makes the activation again.

    All of a GELU in fp32 comes with its derivative, of the same exponential: the node's own
    backward, which is next, need not begin anew. 16 bits would round the derivative once more; the
    others' values, made with their derivative, differ in the last bit.
    """

    def make(input: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        is_whole_gelu = name == "gelu" and features is None and input.dtype == torch.float32
        if not is_whole_gelu or not handover.is_awaited():
            return ops.activation(select(input, features), name)
        one = input.new_ones(input.size(-1)).expand(input.shape)
        derivative, output = ops.gated_product_backward(one, input, one, name)
        handover.leave(derivative)
        return output

    return make


class _Activation(torch.autograd.Function):
    """Keeps its input. A reader of the output that makes it again may hand act'(input) over."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, name: str, handover: Handover) -> torch.Tensor:
        ctx.save_for_backward(input)
        ctx.name, ctx.handover = name, handover
        return ops.activation(input, name)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (input,) = ctx.saved_tensors
        derivative = ctx.handover.take()
        if derivative is not None:
            return derivative.mul_(grad_output), None, None
        return ops.activation_backward(grad_output, input, ctx.name), None, None


_activation = direct(_Activation)


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(1.702 x) = silu(1.702 x) / 1.702; keeps x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad_output, 1.702 * x)


_quick_gelu = direct(_QuickGELU)


def activation_cases(module: nn.Module) -> list[Case] | None:
    """Numbers of either sign and of many sizes, in three dtypes, in training and not."""
    if module._modules or module._buffers or module._parameters:
        return None
    numbers = torch.linspace(-12, 12, 193, device="cpu")  # zero and eighths among them
    numbers = torch.stack([numbers, pattern(193), pattern(193) * 0.01])
    numbers[1:, 96] = 0.0
    cases = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for training in (True, False):
            input = numbers.to(dtype)
            gradients = dtype == torch.float32
            cases.append(
                Case(stand_in(module, training=training), input, gradients, elementwise=True)
            )
    return [*cases, Case(stand_in(module), numbers[0].clone(), elementwise=True)]


def is_wasteful(module: nn.Module) -> bool:
    """Whether a module keeps more for backward than its output.

    False where it does not run on one tensor.
    """
    cases = activation_cases(module)
    if cases is None:
        return False
    case = cases[0]
    x = case.input.clone().requires_grad_()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = type(module).forward(case.module, x * 1)
    except Exception:
        return False
    if not isinstance(output, torch.Tensor) or output.shape != x.shape:
        return False
    large = [t for t in kept if t.numel() >= x.numel()]
    return any(t.data_ptr() != output.data_ptr() for t in large)


@lean_for(nn.GELU)
def gelu_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """`nn.GELU` of either kind."""
    return _activated(input, "gelu" if module.approximate == "none" else "gelu_tanh")


@lean_if(activation_cases)
def exact_gelu_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """GELU by the error function."""
    return _activated(input, "gelu")


@lean_if(activation_cases)
def tanh_gelu_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """Also for the spellings of tanh-GELU in single operations, which keep six tensors of the
    input's size.
    """
    return _activated(input, "gelu_tanh")


@lean_for(nn.SiLU)
@lean_if(activation_cases)
def silu_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x)."""
    return _activated(input, "silu")


@lean_if(activation_cases)
def quick_gelu_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x)."""
    return _remembered(_quick_gelu, input)


class _ReLU(torch.autograd.Function):
    """Keeps one bit an element."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, inplace: bool) -> torch.Tensor:
        if inplace:
            ctx.mark_dirty(input)
        ctx.last, ordered = in_order(input)
        if is_compiling() or not ordered.is_contiguous():
            output = input.relu_() if inplace else input.relu()
            ctx.last, bits = None, ops.positive_bits(output)
        else:
            output = input if inplace else torch.empty_like(input)
            bits = ops.relu_bits(ordered, in_order(output)[1])
        ctx.save_for_backward(bits)
        return input if inplace else output  # dynamo wants the dirty input itself

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        (bits,) = ctx.saved_tensors
        if ctx.last is None:
            return ops.where_bits(grad_output, bits, 1.0), None
        to_last, back = ctx.last
        return ops.where_bits(grad_output.permute(to_last), bits, 1.0).permute(back), None


_relu = direct(_ReLU)


@lean_for(nn.ReLU)
@lean_if(activation_cases)
def relu_forward(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`nn.ReLU`, in place or not: one bit an element is kept, not the output."""
    inplace = getattr(module, "inplace", False)
    is_dense = x.layout is torch.strided and not x.is_nested
    if not (torch.is_grad_enabled() and x.requires_grad and is_dense):
        return F.relu(x, inplace=inplace)
    return _relu(x, inplace)


OP_NAMES: dict[Callable | None, str] = {
    exact_gelu_forward: "gelu",
    tanh_gelu_forward: "gelu_tanh",
    silu_forward: "silu",
    relu_forward: "relu",
}


def name_of(module: nn.Module) -> str | None:
    """How the ops call what a module computes.

    None where it is no lean activation, or hooks want to see it.
    """
    if not isinstance(module, (nn.Module, Child)) or is_hooked(module):
        return None
    forward = lean_forward_of(module)
    if forward is gelu_forward:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return OP_NAMES.get(forward)
