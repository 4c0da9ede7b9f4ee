"""APPROXIMATE, off unless asked for.

Keep an input for selected rows or entries in 8 bits where it cannot be made again.
"""

from collections.abc import Callable

import torch

from .._torch import is_compiling
from ..nn import SelectiveConv1D, SelectiveLinear
from ..rebuild import remember, select, source_of
from .linear import selective_forward


def eight_bit_forward(
    module: SelectiveLinear | SelectiveConv1D, input: torch.Tensor
) -> torch.Tensor:
    """The forward of a `SelectiveLinear` or `SelectiveConv1D` that keeps its whole input, kept in 8
    bits for values' gradient.

    Kept for backward: one byte an element and 4 a token, shared by the layers that read one input.
    The output and the input's gradient stay exact; each entry of values' gradient gets an error of
    about 0.3 % of its terms (input rounded to 1/127 of its token's largest entry). An input that
    needs no gradient itself is kept as it is.
    """
    kept = None
    eager = torch.is_grad_enabled() and not is_compiling()
    if eager and input.grad_fn is not None and source_of(input) is None:
        kept = keep_in_eight_bits(input)
    output = selective_forward(module, input)
    del kept  # the layer has saved it by now
    return output


def keep_in_eight_bits(input: torch.Tensor) -> torch.Tensor:
    """Remember that `input` [..., F] can be made, nearly, from the int8 tensor returned, [..., F],
    and a scale a token.
    """
    wide = torch.promote_types(torch.float32, input.dtype)
    scale = input.detach().abs().amax(-1, keepdim=True).to(wide) / 127
    divisor = scale.clamp(min=torch.finfo(wide).tiny)
    small = (input.detach() / divisor).round_().to(torch.int8)
    remember(input, _make(input.dtype), (small,), (scale,))
    return small


def _make(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    def make(
        small: torch.Tensor, scale: torch.Tensor, features: torch.Tensor | None = None
    ) -> torch.Tensor:
        return (select(small, features) * scale).to(dtype)

    return make
