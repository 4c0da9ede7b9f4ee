"""What somebody did to a module after its conversion, so that its weight and its `values` no longer go together."""

import warnings

import torch

from .. import ops
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
