"""The grouped product with a frozen weight."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

OPERATOR = type(torch.ops.aten.mm)  # what torch.ops gives, of any library


def grouped_product(
    func: Callable,
    args: tuple,
    kwargs: Mapping,
    input: torch.Tensor,
    read: torch.Tensor,
    weight: torch.Tensor,
    stops: list[int],
) -> torch.Tensor:
    """`func(*args, **kwargs)` with `weight` in the place of `read`, which does not train.

    stops: where the range of each expert ends. An operator of another library makes the dense
    gradient of a weight whether it trains or not: its product is made here.
    """
    if isinstance(func, OPERATOR):
        return _Ranges.apply(input, weight, stops)
    given = [weight if x is read else x for x in args]
    named = {name: weight if x is read else x for name, x in kwargs.items()}
    return func(*given, **named)


class _Ranges(torch.autograd.Function):
    """input: [tokens, in]. weight: [experts, in, out]. Returns [tokens, out], zero past the end."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, stops: list[int]
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.stops = stops
        return _by_ranges(input, weight, stops)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _by_ranges(grad_output, weight.transpose(1, 2), ctx.stops), None, None


def _by_ranges(input: torch.Tensor, weight: torch.Tensor, stops: list[int]) -> torch.Tensor:
    output = input.new_zeros(input.size(0), weight.size(2))
    start = 0
    for matrix, stop in zip(weight, stops):
        if stop > start:
            torch.mm(input[start:stop], matrix, out=output[start:stop])
        start = max(start, stop)
    return output
