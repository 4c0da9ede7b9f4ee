"""The fingerprint of what a delta leaves alone: the same for a trained model and its base."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..carried import selected_modules
from ..selection import Selection
from . import places
from .fingerprint import fingerprint, fingerprint_of_entries, joint, line_of


def rest_of_matrix(
    matrix: torch.Tensor, selection: Selection, values: torch.Tensor, whole: int
) -> int:
    """The fingerprint of `matrix` without the entries of `selection`.

    values: what it holds there. whole: the fingerprint of all of it.
    """
    rows, columns = matrix.shape
    positions = places.positions_of(selection.to(values.device), (rows, columns))
    kept = positions >= 0
    some = fingerprint_of_entries(values.reshape(-1)[kept], positions[kept])
    return (whole - some) % (1 << 64)


def rest_of(
    model: nn.Module,
    touched: Iterable[str],
    of: Callable[[str, torch.Tensor], int] = lambda name, tensor: fingerprint(tensor),
) -> str:
    """The fingerprint of the parameters of `model` without those called `touched`, by any name.

    of: what gives the fingerprint of a parameter.
    """
    left = {id(places.tensor_of(*places.owner_of(model, name))) for name in touched}
    left |= {id(module._parameters["values"]) for _, module in selected_modules(model)}
    return joint(
        line_of(name, parameter.shape, parameter.dtype, of(name, parameter))
        for name, parameter in model.named_parameters()
        if id(parameter) not in left
    )
