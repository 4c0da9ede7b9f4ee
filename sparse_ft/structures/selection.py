"""What every selection is: an immutable index that was checked, for matrices that it fits."""

import hashlib
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor

from .. import ops
from .._torch import is_compiling
from ..ops.layout import STRUCTURES, Layout, Shape, Structure, inside
from .index import as_index, check_order, smallest_dtype


class Limit(NamedTuple):
    """What an index names must lie below the size."""

    what: str
    largest: int
    size: int


# (digest, device) -> index tensor: equal feature sets are one tensor.
_interned: "weakref.WeakValueDictionary[Any, Tensor]" = weakref.WeakValueDictionary()


SELECTIONS: dict[str, "type[Selection]"] = {}  # by kind


class Selection(Structure):
    """The entries of one weight that train. Immutable; one of `Rows`, `Columns`, `Blocks`,
    `Entries`.

    index: integer tensor (or nested list), sorted ascending without duplicates, non-negative, not
    empty. It is copied, and held as int32 where it fits. Construction and use raise TypeError,
    ValueError or IndexError that name the argument, the value and the way out.
    matrix_shape: (rows, columns) of the one matrix that it was chosen on, by `sft.select`,
    `from_mask` or `on`, and serves; None for one that was written by hand, which serves every
    matrix that it fits. Equality does not look at it.
    """

    __slots__ = (
        "index",
        "block_size",
        "matrix_shape",
        "_bound",
        "_features",
        "_version",
        "__weakref__",
    )
    index: Tensor
    block_size: tuple[int, int]
    matrix_shape: tuple[int, int] | None
    _bound: Any  # the largest number of the index, or of each of its columns
    _features: dict[tuple[int, int], tuple[Tensor | None, Layout]]
    _version: int

    has_block_size: ClassVar[bool] = False  # whether it is made of one, too
    _index_shape: ClassVar[str] = "[n]"

    def __init_subclass__(cls) -> None:
        """A class that names its kind is what ops, plans and `sft.from_mask` know by it."""
        if "kind" in vars(cls):
            STRUCTURES[cls.kind] = SELECTIONS[cls.kind] = cls

    def __init__(self, index: object, *more: object):
        if more:
            # Two lists of rows and columns would train the flat positions that the first one names.
            raise TypeError(
                f"index: {type(self).__name__} takes one index, of shape {self._index_shape};"
                " single entries are flat positions, row * columns + column (sft.from_mask makes"
                " them from a bool matrix)"
            )
        self._init(index, (1, 1))

    def _init(self, index: object, block_size: tuple[int, int]) -> None:
        checked = as_index(index, self._index_shape, self.index_columns)
        check_order(checked)
        bound = checked.amax(0).tolist()
        _fill(self, checked.to(smallest_dtype(checked)), block_size, bound)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name}: a {type(self).__name__} is immutable; make a new one")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __reduce__(self) -> tuple:
        return rebuilt, (type(self), self.index, self.block_size, self._bound, self.matrix_shape)

    def __deepcopy__(self, memo: dict) -> "Selection":
        return self._with(self.index.clone(), self.matrix_shape)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Selection) or type(self) is not type(other):
            return False
        if self.block_size != other.block_size or self.index.shape != other.index.shape:
            return False
        return torch.equal(self.index.cpu(), other.index.cpu())

    def __hash__(self) -> int:
        return hash((self.kind, self.block_size, tuple(self.index.shape)))

    def __len__(self) -> int:
        return self.index.size(0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} selected, up to {self._bound})"

    @property
    def layout(self) -> Layout:
        """`(kind, index, block_h, block_w)`, as the ops take it (`sparse_ft.ops.layout`)."""
        self._check_unedited()
        return Layout(self.kind, self.index, *self.block_size)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits: equal for equal selections, on every device and machine, and for
        no others.
        """
        described = f"{self.kind} {self.block_size} {tuple(self.index.shape)} "
        index = self.index.to("cpu", torch.int64).contiguous().numpy()
        numbers = index.astype("<i8", copy=False).tobytes()
        return hashlib.sha256(described.encode() + numbers).hexdigest()[:32]

    def values_shape(self, shape: Shape) -> torch.Size:
        """Shape of `values` for a matrix of `shape` (rows, columns)."""
        self.check(shape)
        return torch.Size(self.layout.values_shape(shape))

    def nnz(self, shape: Shape) -> int:
        """Number of entries of a matrix of `shape` that train (padding of edge blocks does not
        count).
        """
        return self.values_shape(shape).numel()

    def density(self, shape: Shape) -> float:
        """Share of the entries of a matrix of `shape` that train, in (0, 1]."""
        return self.nnz(shape) / (shape[0] * shape[1])

    def check(self, shape: Shape) -> None:
        """Raise IndexError unless every index lies inside of a matrix of `shape`.

        Raise ValueError unless it is a matrix, and of the shape that this selection was chosen on,
        if that is known.
        """
        if self.matrix_shape is not None and self.matrix_shape != tuple(shape):
            raise ValueError(
                f"matrix: its shape is {tuple(shape)}, and the selection was chosen on"
                f" {self.matrix_shape}; choose anew on this one, or selection.on(shape) if the same"
                f" {self.kind} are meant"
            )
        self._check_inside(shape)

    def _check_inside(self, shape: Shape) -> None:
        if len(shape) != 2:
            raise ValueError(
                f"matrix: expected 2 dimensions [rows, columns], got {tuple(shape)}; see"
                " sft.matrix_shape"
            )
        for what, largest, size in self._limits(shape):
            if largest >= size:
                raise IndexError(
                    f"index: {what} {largest} is out of range for a matrix of shape {tuple(shape)},"
                    f" which has {size} of them (0 to {size - 1})"
                )

    def _limits(self, shape: Shape) -> list[Limit]:
        """What `_bound` must lie below on a matrix of `shape`."""
        raise NotImplementedError

    def _check_unedited(self) -> None:
        """The compiled ops trust the index: one that was edited after it was checked could write
        anywhere.
        """
        if is_compiling() or self.index.is_inference():
            return
        if self.index._version != self._version:
            raise ValueError(
                "index: it was changed in place after the selection was made; make a new selection"
                " instead"
            )

    def mask(self, shape: Shape) -> Tensor:
        """Bool tensor [rows, columns], True where an entry trains, on the index's device."""
        self.check(shape)
        mask = torch.zeros(tuple(shape), dtype=torch.bool, device=self.index.device)
        row, column = torch.broadcast_tensors(*self.layout.places(shape))
        keep = inside(row, column, shape)
        mask[row[keep], column[keep]] = True
        return mask

    def gather(self, matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The selected entries of `matrix` [rows, columns] as compact values; dtype: default that
        of the matrix.
        """
        self.check(_shape_of(matrix))
        return ops.gather_selected(matrix, *self.to(matrix.device).layout, dtype=dtype)

    def scatter_(self, matrix: Tensor, values: Tensor) -> Tensor:
        """Write compact `values` to the selected entries of `matrix` [rows, columns], in place;
        returns the matrix.
        """
        self.check(_shape_of(matrix))
        ops.scatter_selected_(matrix, values, *self.to(matrix.device).layout)
        return matrix

    def to(self, device: torch.device | str | int) -> "Selection":
        """This selection with its index on `device` (itself where it is there already; a meta
        device keeps the index).
        """
        device = torch.device(device)
        if device.type == "meta" or self.index.device == device:
            return self
        self._check_unedited()
        return self._with(self.index.to(device), self.matrix_shape)

    def on(self, shape: Shape) -> "Selection":
        """This selection for matrices of `shape` (rows, columns) alone, whatever it was chosen on:
        others are refused.

        Raises IndexError unless every index lies inside, ValueError unless it is a matrix.
        """
        self._check_inside(shape)
        rows, columns = shape
        return self._with(self.index, (rows, columns))

    def _with(self, index: Tensor, matrix_shape: tuple[int, int] | None) -> "Selection":
        return rebuilt(type(self), index, self.block_size, self._bound, matrix_shape)

    def restrict(self, dim: int, size: int) -> tuple[Tensor | None, Layout]:
        """What a gradient needs of the `size` features along `dim` (0: rows, 1: columns) of the
        matrix.

        Returns `(features, layout)`: features, the sorted int64 features that any entry touches, or
        None where all must be kept (equal sets are one tensor); layout, this selection's layout on
        a matrix that holds those features only.
        """
        self._check_unedited()
        key = dim, size
        if key not in self._features:
            if is_compiling():
                return self._restrict(dim, size)
            self._features[key] = self._restrict(dim, size)
        return self._features[key]

    def _restrict(self, dim: int, size: int) -> tuple[Tensor | None, Layout]:
        return None, self.layout

    @classmethod
    def of_mask(cls, mask: Tensor, block_size: Any) -> "Selection":
        """Of the entries that a bool matrix [rows, columns] names, or of the smallest parts of this
        kind that hold them.
        """
        raise NotImplementedError


def _shape_of(matrix: Tensor) -> torch.Size:
    if matrix.is_nested:
        raise TypeError("matrix: expected a dense tensor [rows, columns], got a nested tensor")
    return matrix.shape


def rebuilt(
    cls: type[Selection],
    index: Tensor,
    block_size: tuple[int, int],
    bound: Any,
    matrix_shape: tuple[int, int] | None = None,
) -> Selection:
    """A selection of an index that was checked before."""
    return _fill(object.__new__(cls), index, block_size, bound, matrix_shape)


def _fill(
    selection: Selection,
    index: Tensor,
    block_size: tuple[int, int],
    bound: Any,
    matrix_shape: tuple[int, int] | None = None,
) -> Selection:
    fields: Mapping[str, Any] = {
        "index": index,
        "block_size": block_size,
        "matrix_shape": matrix_shape,
        "_bound": bound,
        "_features": {},
        "_version": 0 if index.is_inference() else index._version,
    }
    for name, value in fields.items():
        object.__setattr__(selection, name, value)
    return selection


def intern_features(features: Tensor) -> Tensor:
    """One tensor per set of features and device, so that layers that need the same features can be
    told by identity.
    """
    if is_compiling():
        return features
    digest = hashlib.sha1(features.cpu().numpy().tobytes()).digest()
    return _interned.setdefault((digest, features.device), features)
