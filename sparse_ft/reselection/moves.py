"""Moves: where the entries of a new selection of a matrix come from, an old selection of it."""

import dataclasses

import torch

from ..ops.layout import inside
from ..selection import Selection


@dataclasses.dataclass(slots=True, frozen=True)
class Moves:
    """Units are what a selection lists: rows, columns, blocks or entries; between two of different
    kinds, single entries.

    dim: of `values` along which units lie; None: entries, whatever the shape. at: int64 [new
    units], the place of each among the old ones. kept: bool [new units], whether it has one.
    dropped: bool [old units]. shape: of the new values.
    """

    dim: int | None
    at: torch.Tensor
    kept: torch.Tensor
    dropped: torch.Tensor
    shape: torch.Size

    @classmethod
    def between(cls, old: Selection, new: Selection, shape: tuple[int, int]) -> "Moves":
        """From `old` to `new`, both selections of a matrix of `shape`."""
        if old.kind == new.kind and old.block_size == new.block_size:
            dim = 1 if old.kind == "columns" else 0
            old_keys, new_keys = _units(old, shape), _units(new, shape)
        else:
            dim = None
            old_keys, new_keys = positions(old, shape), positions(new, shape)
        order = old_keys.argsort()
        ordered = old_keys[order]
        at = torch.searchsorted(ordered, new_keys).clamp_(max=ordered.numel() - 1)
        kept = (ordered[at] == new_keys) & (new_keys >= 0)
        at = order[at]
        dropped = old_keys >= 0
        dropped[at[kept]] = False
        return cls(dim, at, kept, dropped, new.values_shape(shape))

    def moved(self, old: torch.Tensor, fresh: torch.Tensor | float) -> torch.Tensor:
        """What was kept of each old value in the new layout, and `fresh` for those that join.

        fresh: a number, or shaped as the new values.
        """
        if self.dim is None:
            picked = old.reshape(-1)[self.at].view(self.shape)
            return torch.where(self.kept.view(self.shape), picked, fresh).to(old.dtype)
        picked = old.index_select(self.dim, self.at)
        return torch.where(self._along(self.kept, picked), picked, fresh).to(old.dtype)

    def moved_factor(self, factor: torch.Tensor, old_shape: torch.Size) -> torch.Tensor:
        """A factor, of single values or of what the first dimension of the old ones counts; 1 for
        those that join.
        """
        if factor.shape == old_shape:
            return self.moved(factor, 1.0)
        if self.dim == 0:
            return torch.where(self.kept, factor[self.at], 1.0)
        if self.dim == 1:
            return factor
        by_value = factor.view(-1, *[1] * (len(old_shape) - 1)).expand(old_shape)
        return self.moved(by_value.contiguous(), 1.0)

    def counts(
        self, shape: tuple[int, int], old: Selection, new: Selection
    ) -> tuple[int, int, int]:
        """How many entries (kept, joined, dropped); padding does not count."""
        if self.dim is None:
            kept = int(self.kept.sum())
        else:
            kept = int(_sizes(new, shape)[self.kept].sum())
        return kept, new.nnz(shape) - kept, old.nnz(shape) - kept

    def dropped_entries(self, old: torch.Tensor) -> torch.Tensor:
        """Bool like the old values: those that train no more."""
        if self.dim is None:
            return self.dropped.view(old.shape)
        return self._along(self.dropped, old).expand(old.shape)

    def _along(self, units: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        shape = [1] * values.dim()
        if self.dim is not None:
            shape[self.dim] = -1
        return units.view(shape)


def _units(selection: Selection, shape: tuple[int, int]) -> torch.Tensor:
    """int64 [units], one number for each."""
    index = selection.index.long()
    if selection.kind != "blocks":
        return index
    across = -(-shape[1] // selection.block_size[1])
    return index[:, 0] * across + index[:, 1]


def _sizes(selection: Selection, shape: tuple[int, int]) -> torch.Tensor:
    """int64 [units]: of how many entries each consists."""
    rows, columns = shape
    index = selection.index.long()
    if selection.kind == "rows":
        return torch.full_like(index, columns)
    if selection.kind == "columns":
        return torch.full_like(index, rows)
    if selection.kind == "entries":
        return torch.ones_like(index)
    block_h, block_w = selection.block_size
    height = (rows - index[:, 0] * block_h).clamp(max=block_h)
    width = (columns - index[:, 1] * block_w).clamp(max=block_w)
    return height * width


def positions(selection: Selection, shape: tuple[int, int]) -> torch.Tensor:
    """int64 [values]: flat positions in a matrix of `shape`, -1 for padding."""
    row, column = torch.broadcast_tensors(*selection.layout.places(shape))
    return torch.where(inside(row, column, shape), row * shape[1] + column, -1).reshape(-1)
