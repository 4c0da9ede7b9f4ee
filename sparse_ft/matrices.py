"""The matrix of a parameter, which its Selection speaks of."""

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


def shape_of_matrix(owner: nn.Module, attribute: str, shape: torch.Size) -> tuple[int, int]:
    """(rows, columns) of the parameter `attribute` of `owner`, which has this `shape`.

    The matrix is the stored tensor: (out, in * kernel) for a convolution's weight, (product of the
    leading dimensions, last) for everything else. Scalars have none.
    """
    if isinstance(owner, CONVOLUTIONS) and attribute == "weight":
        return shape[0], shape[1:].numel()
    return shape[:-1].numel(), shape[-1]
