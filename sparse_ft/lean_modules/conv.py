"""Convolutions whose weight is frozen, or trains in whole channels only.

Kept for backward: a frozen weight by reference and no input (torch keeps the input). Selected input
channels: those channels of the input. Selected output channels: the whole input, as in torch, but
no dense weight gradient is made.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._torch import WeakTensorKeyDictionary, below_autograd, direct, is_compiling, output_padding
from ..annotations import AnyModule
from ..double_backward import first_order
from ..nn import stored
from ..rebuild import unviewed
from .hollow import forget_input, hollow, may_forget, stand_in
from .register import lean_for

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

Size = tuple[int, ...]  # a number for each dimension of a picture
# Stride, padding, dilation, whether it is transposed, output_padding, groups.
Options = tuple[Size, Size, Size, bool, Size, int]
# Values that train, the dimension of the weight that their channels belong to, and the channels.
Trains = tuple[torch.Tensor | None, int | None, torch.Tensor | None]

# Index of a Columns selection -> (kernel elements, the channels it consists of or None).
_found = WeakTensorKeyDictionary()


@lean_for(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def conv_forward(module: AnyModule, input: torch.Tensor) -> torch.Tensor:
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, with every padding, stride, dilation and number of
    groups.
    """
    trains = _trains(module, input)
    if trains is None:
        return type(module).forward(module, input)
    dims = len(module.kernel_size)
    if input.dim() == dims + 1:
        return conv_forward(module, input.unsqueeze(0)).squeeze(0)
    padded, padding = _pad(module, input)
    options = module.stride, padding, module.dilation, False, (0,) * dims, module.groups
    return _convolution(padded, stored(module, "weight"), *trains, module.bias, options)


@lean_for(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def conv_transpose_forward(
    module: AnyModule, input: torch.Tensor, output_size: list[int] | None = None
) -> torch.Tensor:
    """`nn.ConvTranspose1d`, `nn.ConvTranspose2d`, `nn.ConvTranspose3d`."""
    trains = _trains(module, input)
    if trains is None or output_padding is None:
        return type(module).forward(module, input, output_size)
    dims = len(module.kernel_size)
    added = output_padding(
        module,
        input,
        output_size,
        module.stride,
        module.padding,
        module.kernel_size,
        dims,
        module.dilation,
    )
    options = module.stride, module.padding, module.dilation, True, tuple(added), module.groups
    batched = input.unsqueeze(0) if input.dim() == dims + 1 else input
    output = _convolution(batched, stored(module, "weight"), *trains, module.bias, options)
    return output if batched is input else output.squeeze(0)


def _trains(module: AnyModule, input: torch.Tensor) -> Trains | None:
    """What of the weight trains: (values, dimension, channels), all None if nothing does.

    None: torch's own path is the way.

    dimension: 0 or 1, of the weight, to which `channels` belong.
    """
    weight = module._parameters.get("weight")
    if (
        not torch.is_grad_enabled()
        or weight is None
        or not (weight.is_floating_point() and input.is_floating_point())
    ):
        return None
    if input.dim() - len(module.kernel_size) not in (1, 2):
        return None  # torch says what is wrong
    read = module.weight
    if not read.requires_grad:
        return (None, None, None) if read is weight else None
    found = None if read is weight else selected_channels(module)
    return found and (module.weight_selected.values, *found)


def selected_channels(module: AnyModule) -> tuple[int, torch.Tensor] | None:
    """(dimension, channels) of a convolution's weight that its selection consists of.

    None where it has another, or none.
    """
    selected = module._modules.get("weight_selected")
    if selected is None or getattr(module, "groups", None) != 1:
        return None
    selection = selected._sparse_ft_state.selection
    if selection.kind == "rows":
        return 0, selection.index
    if selection.kind == "columns" and not is_compiling():
        channels = _whole_channels(selection.index, stored(module, "weight")[0, 0].numel())
        return None if channels is None else (1, channels)
    return None


def _whole_channels(index: torch.Tensor, kernel: int) -> torch.Tensor | None:
    """The channels of `kernel` columns each that a sorted index consists of.

    None if it takes a part of one.
    """
    known = _found.get(index)
    if known is None or known[0] != kernel:
        channels = None
        if index.numel() % kernel == 0:
            lines = index.view(-1, kernel)
            first = lines[:, :1]
            begins = bool((first % kernel == 0).all())
            if begins and bool((lines - first == torch.arange(kernel, device=index.device)).all()):
                channels = first.squeeze(1) // kernel
        known = _found[index] = kernel, channels
    return known[1]


def _pad(module: AnyModule, input: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The input with the padding that the convolution itself cannot do, and the padding that it
    can.
    """
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return input, module.padding
    sides = _sides(module)
    if module.padding_mode in PADS:
        return _padded(input, tuple(sides), module.padding_mode), (0,) * len(module.kernel_size)
    if module.padding_mode != "zeros":
        return F.pad(input, sides, mode=module.padding_mode), (0,) * len(module.kernel_size)
    left, right = sides[-2::-2], sides[::-2]  # from the first dimension to the last
    if left == right:
        return input, tuple(left)
    excess = []
    for before, after in zip(reversed(left), reversed(right), strict=True):
        excess += [0, after - before]
    return F.pad(input, excess), tuple(left)


def _sides(module: AnyModule) -> list[int]:
    """Its padding as `F.pad` takes it: (left, right) of the last dimension, then of the one before
    it, …
    """
    if module.padding == "valid":
        return [0] * 2 * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return [padding for padding in reversed(module.padding) for _ in range(2)]


PADS = {
    "reflect": [getattr(torch.ops.aten, f"reflection_pad{n}d_backward") for n in (1, 2, 3)],
    "replicate": [getattr(torch.ops.aten, f"replication_pad{n}d_backward") for n in (1, 2, 3)],
}


class _Pad(torch.autograd.Function):
    """F.pad; torch keeps the input, for its shape."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, sides: tuple[int, ...], mode: str) -> torch.Tensor:
        ctx.like, ctx.sides, ctx.mode = hollow(input), sides, mode
        return F.pad(input, sides, mode=mode)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        backward = PADS[ctx.mode][len(ctx.sides) // 2 - 1]
        return backward(grad_output, stand_in(ctx.like, grad_output), ctx.sides), None, None


class _Convolution(torch.autograd.Function):
    """A convolution in its input, the bias, and the values of selected channels of its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        values: torch.Tensor | None,
        dimension: int | None,
        channels: torch.Tensor | None,
        bias: torch.Tensor | None,
        options: Options,
    ) -> torch.Tensor:
        output = unviewed(_convolve(input, weight, bias, options))
        needs_input, _, needs_values = ctx.needs_input_grad[:3]
        kept = None
        if needs_values and values is not None and channels is not None:
            ctx.by_input = (dimension == 1) != options[3]
            kept = input.index_select(1, channels).to(output.dtype) if ctx.by_input else input
            ctx.dimension, ctx.channels = dimension, channels
            ctx.values_shape, ctx.values_dtype = values.shape, values.dtype
        ctx.save_for_backward(weight if needs_input or needs_values else None, kept)
        ctx.like, ctx.options = hollow(input), options
        ctx.bias_dtype = None if bias is None else bias.dtype
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, kept = ctx.saved_tensors
        grad_input = grad_values = grad_bias = None
        if ctx.needs_input_grad[0]:
            like = stand_in(ctx.like, grad_output)
            # Autograd casts it.
            grad_input = _backward(grad_output, like, weight.to(grad_output.dtype), ctx.options, 0)
        if kept is not None:
            of_output = grad_output if ctx.by_input else grad_output.index_select(1, ctx.channels)
            part = weight.index_select(ctx.dimension, ctx.channels).to(grad_output.dtype)
            grad_values = _backward(of_output, kept.to(grad_output.dtype), part, ctx.options, 1)
            grad_values = grad_values.reshape(ctx.values_shape).to(ctx.values_dtype)
        if ctx.needs_input_grad[5]:
            others = [d for d in range(grad_output.dim()) if d != 1]
            grad_bias = grad_output.sum(others).to(ctx.bias_dtype)
        return grad_input, None, grad_values, None, None, grad_bias, None


def _convolution(
    input: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor | None,
    dimension: int | None,
    channels: torch.Tensor | None,
    bias: torch.Tensor | None,
    options: Options,
) -> torch.Tensor:
    if values is None and may_forget(input, weight):
        return forget_input(_function(input, weight, bias, *options), weight)
    return _apply_convolution(input, weight, values, dimension, channels, bias, options)


_apply_convolution, _padded = direct(_Convolution), direct(_Pad)
_convolution_backward = torch.ops.aten.convolution_backward.default


def _convolve(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, options: Options
) -> torch.Tensor:
    if is_compiling():
        return _function(input, weight, bias, *options)
    # Torch chooses its kernel by whether a backward follows.
    with torch.enable_grad(), below_autograd():
        return _function(input, weight, bias, *options)


def _function(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Size,
    padding: Size,
    dilation: Size,
    transposed: bool,
    output_padding: Size,
    groups: int,
) -> torch.Tensor:
    dims = weight.dim() - 2
    if transposed:
        return TRANSPOSED[dims](
            input, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return CONV[dims](input, weight, bias, stride, padding, dilation, groups)


def _backward(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    options: Options,
    which: int,
) -> torch.Tensor:
    """The gradient of the input (which = 0) or of the weight (1)."""
    wanted = (which == 0, which == 1, False)
    gradients = _convolution_backward(grad_output, input, weight, None, *options, wanted)
    return gradients[which]
