"""A weight as the matrix of its selection.

And what somebody did to a weight, so that `values` have no place in it any more.
"""

import warnings

import torch

from .. import ops
from ..selection import Selection
from .state import State


def why_apart(state: State, values: torch.Tensor | None, weight: torch.Tensor | None) -> str | None:
    """Why `values` have no place in `weight` any more, to stand after the module's name.

    None where they have one.
    """
    if weight is None:
        return "its weight was taken away (deleted, pruned, parametrised) after sft.convert"
    if values is None:
        return "its values were taken away after sft.convert"
    rows, columns = state.matrix_shape
    if not is_matrix(weight, state.matrix_shape):
        return (
            f"its selection is on a matrix {(rows, columns)}, and now its weight's shape is "
            f"{tuple(weight.shape)}"
        )
    if weight.device.type != values.device.type == "meta":
        return "its values are on the meta device, so they have no numbers"
    try:
        expected = state.selection.values_shape(state.matrix_shape)
    except (IndexError, ValueError) as error:
        return f"nothing tells where its values belong ({error})"
    if values.shape != expected:
        return (
            f"its values have shape {tuple(values.shape)} now, and its selection takes "
            f"{tuple(expected)}"
        )
    return None


def same_entries_on(state: State, weight: torch.Tensor) -> Selection | None:
    """The selection of `state` on a weight of another size.

    None unless each of its entries is at the row and column that it was. Only for weights that are
    stored as their matrix: those of three and more dimensions are laid out by who reads them.
    """
    if weight.dim() not in (1, 2):
        return None
    old, new = state.matrix_shape, (weight.shape[:-1].numel(), weight.size(-1))
    if state.selection.kind == "entries" and old[1] != new[1] and old[0] != 1:
        return None  # flat positions count columns
    try:
        moved = state.selection.on(new)
        same_shape = moved.values_shape(new) == state.selection.values_shape(old)
        same_padding = moved.nnz(new) == state.selection.nnz(old)
    except (IndexError, ValueError):
        return None
    return moved if same_shape and same_padding else None


def as_matrix(tensor: torch.Tensor, shape: tuple[int, int], label: str = "weight") -> torch.Tensor:
    """`tensor` viewed as the matrix `shape`.

    Raises ValueError where it has another shape or its memory is not contiguous.
    """
    if not is_matrix(tensor, shape):
        raise ValueError(
            f"{label}: its selection is on a matrix {tuple(shape)}, and now its shape is "
            f"{tuple(tensor.shape)}, where they are not the same entries; sft.revert(model), "
            f"resize, then convert"
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"{label}: expected contiguous memory, got shape {tuple(tensor.shape)} with strides "
            f"{tensor.stride()}; replace it by nn.Parameter(weight.contiguous())"
        )
    return tensor.view(shape)


def is_matrix(weight: torch.Tensor, shape: tuple[int, int]) -> bool:
    """Whether `weight` can be read as the matrix `shape`: as many entries, and rows or columns."""
    if weight.numel() != shape[0] * shape[1]:
        return False
    return weight.dim() == 0 or weight.shape[0] == shape[0] or weight.shape[-1] == shape[1]


def write_across(state: State, values: torch.Tensor, weight: torch.Tensor) -> None:
    """Write `values` to the selected entries of `weight`, whatever its device and strides."""
    with torch.no_grad():
        selection = state.selection.to(weight.device)
        dense = weight.detach().contiguous()  # itself where it is
        matrix, moved = dense.view(state.matrix_shape), values.detach().to(weight.device)
        ops.scatter_selected_(matrix, moved, selection.layout)
        if dense.data_ptr() != weight.data_ptr():
            weight.detach().copy_(dense)


def warn_of_loss(label: str, why: str) -> None:
    """Say what `sft.revert` could not write back."""
    warnings.warn(
        f"{label}: {why}; sft.revert leaves the weight as it is, without what was trained since it "
        f"last showed its values",
        stacklevel=4,
    )


def warn_of_resize(state: State) -> None:
    """Say that the selection followed its weight to another size, and what does not train there."""
    warnings.warn(
        f"{state.label}: its weight was resized to {state.matrix_shape} after sft.convert; the "
        f"{state.selection.kind} that were selected train on, what came new is frozen (to train "
        f"it: sft.revert(model), then convert with another plan)",
        stacklevel=5,
    )
