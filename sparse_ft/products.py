"""Dense products with the bits of `nn.Linear` for a weight that does not require grad."""

from typing import Any

import torch
import torch.nn.functional as F


def product_of(
    input: torch.Tensor, weight: torch.Tensor, bias: Any, input_dim: int
) -> torch.Tensor:
    """`F.linear(input, weight, bias)` (input_dim 1) or `input @ weight + bias` (input_dim 0).

    input: [..., features]. weight: frozen, [out, in] or [in, out]. input_dim: the dimension of the
    weight that meets the input.
    """
    if input_dim == 1:
        if input.dim() > 2 and not _folds(input, bias):
            input = _as_autocast_has_it(input)
            if not _folds(input, bias):
                # F.linear folds such an input into one mm only for a weight that requires grad, as
                # the original's did; ours would go through bmm: other bits, and more memory. The
                # fold is a view where the strides allow one.
                output = F.linear(flattened(input), weight).view(*input.shape[:-1], weight.size(0))
                return output if bias is None else output + bias.to(output.dtype)
        return F.linear(input, weight, bias)
    output = torch.addmm(bias, flattened(input), weight)
    return output.view(*input.shape[:-1], weight.size(1))


def _folds(input: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether F.linear makes one matrix of `input`, of three dimensions or more, whatever the
    weight requires.

    With a bias it asks for contiguous memory; without, for strides in order, which those of size 1
    need not be.
    """
    if bias is not None or not input.is_contiguous() or 1 not in input.shape:
        return input.is_contiguous()
    sizes, strides = input.shape, input.stride()
    return all(strides[i] == strides[i + 1] * sizes[i + 1] for i in range(input.dim() - 2))


def _as_autocast_has_it(input: torch.Tensor) -> torch.Tensor:
    """`input` as autocast hands it to F.linear: its copy may be contiguous where the
    input is not.
    """
    kind = input.device.type
    if (
        torch.is_autocast_enabled(kind)
        and input.is_floating_point()
        and input.dtype != torch.float64
    ):
        return input.to(torch.get_autocast_dtype(kind))
    return input


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    """[..., features] as [T, features], also without features."""
    return (
        tensor if tensor.dim() == 2 else tensor.reshape(tensor.shape[:-1].numel(), tensor.size(-1))
    )
