"""Selections: which entries of one weight train. Rows, columns, blocks or single entries of its
matrix [rows, columns].
"""

import hashlib
import weakref

import torch

from . import ops
from ._torch import is_compiling
from .ops.layout import coordinates, inside, values_shape

INT32_MAX = 2**31 - 1
_interned = (
    weakref.WeakValueDictionary()
)  # (digest, device) -> index tensor: equal feature sets are one tensor


class Selection:
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
    kind = None

    def __init__(self, index, *more):
        if (
            more
        ):  # two lists of rows and columns would train the flat positions that the first one names
            raise TypeError(
                f"index: {type(self).__name__} takes one index, of shape {self._index_shape};"
                " single entries are flat positions, row * columns + column (sft.from_mask makes"
                " them from a bool matrix)"
            )
        self._init(index, (1, 1))

    def _init(self, index, block_size):
        index = _as_index(index, self._index_shape)
        _check_order(index)
        bound = index.amax(0).tolist()
        index = index.to(torch.int32 if index.max() <= INT32_MAX else torch.int64)
        _fill(self, index, block_size, bound)

    _index_shape = "[n]"

    def __setattr__(self, name, value):
        raise AttributeError(f"{name}: a {type(self).__name__} is immutable; make a new one")

    def __delattr__(self, name):
        self.__setattr__(name, None)

    def __reduce__(self):
        return rebuilt, (type(self), self.index, self.block_size, self._bound, self.matrix_shape)

    def __deepcopy__(self, memo):
        return rebuilt(
            type(self), self.index.clone(), self.block_size, self._bound, self.matrix_shape
        )

    def __eq__(self, other):
        return self is other or (
            type(self) is type(other)
            and self.block_size == other.block_size
            and self.index.shape == other.index.shape
            and torch.equal(self.index.cpu(), other.index.cpu())
        )

    def __hash__(self):
        return hash((self.kind, self.block_size, tuple(self.index.shape)))

    def __len__(self):
        return self.index.size(0)

    def __repr__(self):
        block = f", block_size={self.block_size}" if self.kind == "blocks" else ""
        return f"{type(self).__name__}({len(self)} selected, up to {self._bound}{block})"

    @property
    def layout(self):
        """`(kind, index, block_h, block_w)`, as the ops take it (`sparse_ft.ops.layout`)."""
        self._check_unedited()
        return (self.kind, self.index, *self.block_size)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits: equal for equal selections, on every device and machine, and for
        no others.
        """
        described = f"{self.kind} {self.block_size} {tuple(self.index.shape)} "
        index = self.index.to("cpu", torch.int64).contiguous().numpy()
        return hashlib.sha256(
            described.encode() + index.astype("<i8", copy=False).tobytes()
        ).hexdigest()[:32]

    def values_shape(self, shape):
        """Shape of `values` for a matrix of `shape` (rows, columns)."""
        self.check(shape)
        return torch.Size(values_shape(*self.layout, shape))

    def nnz(self, shape):
        """Number of entries of a matrix of `shape` that train (padding of edge blocks does not
        count).
        """
        return self.values_shape(shape).numel()

    def density(self, shape):
        """Share of the entries of a matrix of `shape` that train, in (0, 1]."""
        return self.nnz(shape) / (shape[0] * shape[1])

    def check(self, shape):
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

    def _check_inside(self, shape):
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

    def _check_unedited(self):
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

    def mask(self, shape):
        """Bool tensor [rows, columns], True where an entry trains, on the index's device."""
        self.check(shape)
        mask = torch.zeros(tuple(shape), dtype=torch.bool, device=self.index.device)
        row, column = torch.broadcast_tensors(*coordinates(*self.layout, shape))
        keep = inside(row, column, shape)
        mask[row[keep], column[keep]] = True
        return mask

    def gather(self, matrix, dtype=None):
        """The selected entries of `matrix` [rows, columns] as compact values; dtype: default that
        of the matrix.
        """
        self.check(_shape_of(matrix))
        return ops.gather_selected(matrix, *self.to(matrix.device).layout, dtype=dtype)

    def scatter_(self, matrix, values):
        """Write compact `values` to the selected entries of `matrix` [rows, columns], in place;
        returns the matrix.
        """
        self.check(_shape_of(matrix))
        ops.scatter_selected_(matrix, values, *self.to(matrix.device).layout)
        return matrix

    def to(self, device):
        """This selection with its index on `device` (itself where it is there already; a meta
        device keeps the index).
        """
        device = torch.device(device)
        if device.type == "meta" or self.index.device == device:
            return self
        return rebuilt(
            type(self), self.index.to(device), self.block_size, self._bound, self.matrix_shape
        )

    def on(self, shape):
        """This selection for matrices of `shape` (rows, columns) alone, whatever it was chosen on:
        others are refused.

        Raises IndexError unless every index lies inside, ValueError unless it is a matrix.
        """
        self._check_inside(shape)
        return rebuilt(type(self), self.index, self.block_size, self._bound, tuple(shape))

    def restrict(self, dim, size):
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

    def _restrict(self, dim, size):
        return None, self.layout


class _Lines(Selection):
    """Whole rows or whole columns."""

    __slots__ = ()

    def _limits(self, shape):
        return [(self.kind[:-1], self._bound, shape[self.dim])]

    def _restrict(self, dim, size):
        if dim != self.dim:
            return None, self.layout
        features = _intern(self.index.long())
        return features, (
            self.kind,
            torch.arange(len(self), dtype=torch.int32, device=self.index.device),
            1,
            1,
        )


class Rows(_Lines):
    """Whole rows of the matrix: output features of a linear layer. values: [R, columns]."""

    __slots__ = ()
    kind, dim = "rows", 0


class Columns(_Lines):
    """Whole columns of the matrix: input features of a linear layer. values: [rows, C]."""

    __slots__ = ()
    kind, dim = "columns", 1


class Blocks(Selection):
    """Blocks of the matrix. index: [n, 2] of (block_row, block_col); block_size: int or (bh, bw).
    values: [n, bh, bw].

    Blocks that reach past the edge are zero-padded in `values`; the padding never trains. Use
    raises ValueError where a block is larger than the matrix.
    """

    __slots__ = ()
    kind = "blocks"
    _index_shape = "[n, 2] of (block_row, block_col)"

    def __init__(self, index, block_size):
        self._init(index, as_block_size(block_size))

    def _check_inside(self, shape):
        if len(shape) == 2 and any(block > size for block, size in zip(self.block_size, shape)):
            raise ValueError(
                f"block_size: {self.block_size} is larger than a matrix of shape {tuple(shape)};"
                " its values would hold more padding than the matrix has entries, take"
                " min(block_size, size) in each dimension"
            )
        super()._check_inside(shape)

    def _limits(self, shape):
        names = ("block_row", "block_col")
        return [
            (name, n, -(-size // b))
            for name, n, size, b in zip(names, self._bound, shape, self.block_size)
        ]

    def nnz(self, shape):
        self.check(shape)
        covered = [
            (size - self.index[:, d].long() * b).clamp(max=b)
            for d, (size, b) in enumerate(zip(shape, self.block_size))
        ]
        return int((covered[0] * covered[1]).sum())

    def _restrict(self, dim, size):
        block = self.block_size[dim]
        used, place = self.index[:, dim].long().unique(return_inverse=True)
        features = (used[:, None] * block + torch.arange(block, device=used.device)).reshape(-1)
        index = self.index.clone()
        index[:, dim] = place.to(index.dtype)
        return _intern(features[features < size]), (self.kind, index, *self.block_size)


class Entries(Selection):
    """Single entries. index: flat positions `row * columns + column`. values: [nnz]."""

    __slots__ = ()
    kind = "entries"

    def _limits(self, shape):
        return [("flat position", self._bound, shape[0] * shape[1])]


def from_mask(mask, kind="entries", block_size=None):
    """The selection whose mask is `mask`, a bool matrix [rows, columns].

    kind: "entries", "rows", "columns" or "blocks" (with block_size). Raises ValueError when a row,
    column or block is only partly True, naming the first such.
    """
    if isinstance(mask, torch.Tensor) and mask.is_nested:
        raise TypeError("mask: expected a bool tensor [rows, columns], got a nested tensor")
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.dim() != 2:
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else repr(mask)
        raise TypeError(
            f"mask: expected a bool tensor [rows, columns], got {got}; try weight.ne(0)"
        )
    if kind == "entries":
        selection = Entries(mask.reshape(-1).nonzero().squeeze(1))
    elif kind in ("rows", "columns"):
        lines = mask.any(1 if kind == "rows" else 0).nonzero().squeeze(1)
        selection = Rows(lines) if kind == "rows" else Columns(lines)
    elif kind == "blocks":
        height, width = as_block_size(block_size)
        padded = torch.nn.functional.pad(
            mask, (0, -mask.size(1) % width, 0, -mask.size(0) % height)
        )
        tiles = padded.unflatten(1, (-1, width)).unflatten(
            0, (-1, height)
        )  # [block_rows, bh, block_cols, bw]
        selection = Blocks(tiles.any(3).any(1).nonzero(), (height, width))
    else:
        raise ValueError(f"kind: expected 'entries', 'rows', 'columns' or 'blocks', got {kind!r}")
    partly = (selection.mask(mask.shape) != mask).nonzero()
    if len(partly):
        raise ValueError(
            f"mask: not made of whole {kind}: entry {tuple(partly[0].tolist())} is False where its"
            f" {kind[:-1]} has a True; use kind='entries'"
        )
    return selection.on(mask.shape)


def _shape_of(matrix):
    if matrix.is_nested:
        raise TypeError("matrix: expected a dense tensor [rows, columns], got a nested tensor")
    return matrix.shape


def rebuilt(cls, index, block_size, bound, matrix_shape=None):
    return _fill(object.__new__(cls), index, block_size, bound, matrix_shape)


def _fill(selection, index, block_size, bound, matrix_shape=None):
    fields = {
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


def as_block_size(block_size):
    """`(height, width)` of an int or a pair; ValueError for anything else."""
    size = tuple(block_size) if isinstance(block_size, (tuple, list)) else (block_size, block_size)
    if len(size) != 2 or not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(
            f"block_size: expected a positive int or a pair of them, got {block_size!r}"
        )
    return size


def _as_index(index, shape):
    try:
        index = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"index: expected integers {shape}, got {index!r}") from None
    if index.is_nested:
        raise TypeError(f"index: expected integers {shape}, got a nested tensor")
    if index.numel() == 0:
        raise ValueError(
            "index: an empty selection trains nothing; leave the parameter out of the plan instead"
        )
    if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise TypeError(
            f"index: expected integers {shape}, got {index.dtype}; a bool mask goes to"
            " sft.from_mask"
        )
    if index.dim() != (2 if "," in shape else 1) or ("," in shape and index.size(1) != 2):
        raise ValueError(f"index: expected shape {shape}, got {tuple(index.shape)}")
    if index.device.type == "meta":
        raise ValueError("index: expected a tensor with data, got one on the meta device")
    if index.layout is not torch.strided or index.is_quantized:
        raise TypeError(
            f"index: expected a dense tensor of integers, got {index.layout}, {index.dtype}"
        )
    return index.detach().to(torch.int64, copy=True).contiguous()


def _check_order(index):
    if index.min() < 0:
        raise IndexError(f"index: expected non-negative numbers, got {int(index.min())}")
    a, b = index[:-1], index[1:]
    if index.dim() == 1:
        rising = a < b
    else:
        rising = (a[:, 0] < b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] < b[:, 1]))
    if not rising.all():
        at = int((~rising).nonzero()[0])
        first, second = index[at].tolist(), index[at + 1].tolist()
        how = "duplicated" if first == second else "unsorted"
        raise ValueError(
            f"index: expected sorted numbers without duplicates, got {first} then {second} at"
            f" position {at} ({how}); torch.unique(index, dim=0) mends both"
        )


def _intern(features):
    """One tensor per set of features and device, so that layers that need the same features can be
    told by identity.
    """
    if is_compiling():
        return features
    digest = hashlib.sha1(features.cpu().numpy().tobytes()).digest()
    return _interned.setdefault((digest, features.device), features)
