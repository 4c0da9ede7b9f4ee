"""The matrix of a parameter, which its Selection speaks of."""

from collections.abc import Callable

import torch
from torch import nn

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

# (rows, columns) of the weight of a layer that stores it in a form of its own, None of any other.
# Who knows such layers adds to it: `quantised`.
PACKED: list[Callable[[nn.Module], tuple[int, int] | None]] = []


def shape_of_matrix(owner: nn.Module, attribute: str, shape: torch.Size) -> tuple[int, int]:
    """(rows, columns) of the parameter `attribute` of `owner`, which has this `shape`.

    The matrix is the stored tensor: (out, in * kernel) for a convolution's weight, (product of the
    leading dimensions, last) for everything else, and for a quantised layer what it dequantises
    to. Scalars have none.
    """
    if attribute == "weight":
        for shape_of in PACKED:
            packed = shape_of(owner)
            if packed is not None:
                return packed
    if isinstance(owner, CONVOLUTIONS) and attribute == "weight":
        return shape[0], shape[1:].numel()
    return shape[:-1].numel(), shape[-1]
