"""A weight as the matrix of its selection, and what somebody did to it so that `values` have no place there any more."""

import warnings

import torch

from .. import ops
from ..selection import Selection
from .state import State


def why_apart(state: State, values: torch.Tensor | None, weight: torch.Tensor | None) -> str | None:
    """Why `values` have no place in `weight` any more, to stand after the module's name; None where they have one."""
    if weight is None:
        return "its weight was taken away (deleted, pruned, parametrised) after sft.convert"
    if values is None:
        return "its values were taken away after sft.convert"
    rows, columns = state.matrix_shape
    if not is_matrix(weight, state.matrix_shape):
        return f"its selection is on a matrix {(rows, columns)}, and now its weight's shape is {tuple(weight.shape)}"
    if weight.device.type != values.device.type == "meta":
        return "its values are on the meta device, so they have no numbers"
    try:
        expected = state.selection.values_shape(state.matrix_shape)
    except (IndexError, ValueError) as error:
        return f"nothing tells where its values belong ({error})"
    if values.shape != expected:
        return f"its values have shape {tuple(values.shape)} now, and its selection takes {tuple(expected)}"
    return None


def same_entries_on(state: State, weight: torch.Tensor) -> Selection | None:
    """The selection of `state` on a weight of another size; None unless each of its entries is at the row and column that it was.

    Only for weights that are stored as their matrix: those of three and more dimensions are laid out by who reads them.
    """
    if weight.dim() not in (1, 2):
        return None
    old, new = state.matrix_shape, (weight.shape[:-1].numel(), weight.size(-1))
    if state.selection.kind == "entries" and old[1] != new[1] and old[0] != 1:
        return None  # flat positions count columns
    try:
        moved = state.selection.on(new)
        same = moved.values_shape(new) == state.selection.values_shape(old) and moved.nnz(new) == state.selection.nnz(old)
    except (IndexError, ValueError):
        return None
    return moved if same else None


def as_matrix(tensor: torch.Tensor, shape: tuple[int, int], label: str = "weight") -> torch.Tensor:
    """`tensor` viewed as the matrix `shape`; ValueError where it has another or its memory is not contiguous."""
    if not is_matrix(tensor, shape):
        raise ValueError(
            f"{label}: its selection is on a matrix {tuple(shape)}, and now its shape is {tuple(tensor.shape)}, where "
            f"they are not the same entries; sft.revert(model), resize, then convert"
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"{label}: expected contiguous memory, got shape {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}; replace it by nn.Parameter(weight.contiguous())"
        )
    return tensor.view(shape)


def is_matrix(weight: torch.Tensor, shape: tuple[int, int]) -> bool:
    """Whether `weight` can be read as the matrix `shape`: as many entries, and as many rows or as many columns."""
    if weight.numel() != shape[0] * shape[1]:
        return False
    return weight.dim() == 0 or weight.shape[0] == shape[0] or weight.shape[-1] == shape[1]


def write_across(state: State, values: torch.Tensor, weight: torch.Tensor) -> None:
    """Write `values` to the selected entries of `weight`, wherever the two are and however the weight lies in memory."""
    with torch.no_grad():
        selection = state.selection.to(weight.device)
        dense = weight.detach().contiguous()  # itself where it is
        ops.scatter_selected_(dense.view(state.matrix_shape), values.detach().to(weight.device), *selection.layout)
        if dense.data_ptr() != weight.data_ptr():
            weight.detach().copy_(dense)


def warn_of_loss(label: str, why: str) -> None:
    warnings.warn(
        f"{label}: {why}; sft.revert leaves the weight as it is, without what was trained since it last showed its values",
        stacklevel=4,
    )


def warn_of_resize(state: State) -> None:
    warnings.warn(
        f"{state.label}: its weight was resized to {state.matrix_shape} after sft.convert; the {state.selection.kind} that were "
        f"selected train on, what came new is frozen (to train it: sft.revert(model), then convert with another plan)",
        stacklevel=5,
    )
