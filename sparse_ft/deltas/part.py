"""Part: what a delta changes in one tensor."""

import dataclasses

import torch

from ..selection import Selection
from . import places


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """What changed in one tensor.

    values: the new numbers themselves, in the dtype of the tensor, shaped by the selection (see
    `sparse_ft.ops.layout`), or as the tensor where it changed whole (selection None). A difference
    would not be exact: base + bf16(new - base) misses 4 % of entries.
    shape: of the tensor; matrix_shape: of the matrix that the selection speaks of.
    origin: what the base holds there, shaped as values; None where it is not known.
    rest: fingerprint of the base's other entries, 16 hexadecimal digits; "" where there are none.
    reader: "linear", "conv1d" (stored [in, out]), "embedding", "other", "buffer" or "tied"
    (several modules share it): adapter formats ask.
    """

    selection: Selection | None
    values: torch.Tensor
    shape: tuple[int, ...]
    matrix_shape: tuple[int, int]
    origin: torch.Tensor | None = None
    rest: str = ""
    reader: str = places.OTHER

    @classmethod
    def whole(
        cls, values: torch.Tensor, origin: torch.Tensor | None = None, reader: str = places.OTHER
    ) -> "Part":
        """Of a tensor that changed in all of its entries."""
        shape = tuple(values.shape)
        return cls(None, values, shape, (1, values.numel()), origin, reader=reader)

    @property
    def known_origin(self) -> torch.Tensor:
        """The origin, for who has seen that it is known."""
        if self.origin is None:
            raise ValueError("origin: this part does not know what the base holds")
        return self.origin

    @property
    def entries(self) -> int:
        """How many entries of the tensor it holds."""
        if self.selection is None:
            return self.values.numel()
        return self.selection.nnz(self.matrix_shape)

    def with_values(self, values: torch.Tensor) -> "Part":
        """This part with other new values."""
        return dataclasses.replace(self, values=values)

    def to(self, device: torch.device | str) -> "Part":
        """This part on `device`."""
        return dataclasses.replace(
            self,
            selection=None if self.selection is None else self.selection.to(device),
            values=self.values.to(device),
            origin=None if self.origin is None else self.origin.to(device),
        )
