"""What quantising does to a weight, asked before it is done: `rounded(W)` is W as it comes back."""

import importlib
from collections.abc import Callable

import torch

from ..messages import described

Rounding = Callable[[torch.Tensor], torch.Tensor]
OF_BITSANDBYTES = ("nf4", "fp4")
BITS = range(2, 9)


def rounding_of(asked: "str | int | Rounding") -> Rounding:
    """The function W [rows, columns] -> W quantised and dequantised, in float32.

    asked: "nf4" or "fp4" of bitsandbytes in blocks of 64; a number of bits from 2 to 8, for a grid
    between the least and the greatest number of each row (Lee et al., 2024, OWQ); or a function.
    Raises ValueError for anything else.
    """
    if callable(asked):
        return asked
    if isinstance(asked, str) and asked in OF_BITSANDBYTES:
        return lambda weight: _by_bitsandbytes(weight, asked)
    if isinstance(asked, int) and not isinstance(asked, bool) and asked in BITS:
        return lambda weight: on_a_grid(weight, asked)
    raise ValueError(
        "quantised: expected 'nf4', 'fp4', a number of bits from 2 to 8 or a function of a weight,"
        f" got {described(asked)}"
    )


def on_a_grid(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Each row rounded to 2^bits even steps between its least and its greatest number."""
    wide = weight.float()
    least = wide.amin(dim=1, keepdim=True)
    steps = 2**bits - 1
    step = (wide.amax(dim=1, keepdim=True) - least) / steps
    step = step.clamp(min=torch.finfo(torch.float32).tiny)
    return ((wide - least) / step).round_().mul_(step).add_(least)


def _by_bitsandbytes(weight: torch.Tensor, form: str) -> torch.Tensor:
    functional = importlib.import_module("bitsandbytes.functional")
    wide = weight.float().contiguous()
    codes, state = functional.quantize_4bit(wide, quant_type=form)
    return functional.dequantize_4bit(codes, state)
