"""ExpertsWeight: a weight that holds all experts, as the module that reads it sees it.

It takes part in products with single experts (`weight[expert]`, then a linear layer or `@`) and in
grouped products (each range of tokens with its expert): those run with the frozen weight, and the
gradients of the experts that train are made of their own tokens alone. Whatever else is done with
it sends a dense gradient, as with any other parameter.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from .._torch import as_plain_tensors
from ..products import product_of
from .collecting import Collector, GatheredAlias, SliceAlias, Tap, Use
from .grouped import grouped_product
from .pieces import Piece, Pieces

MATMUL = (torch.mm, torch.matmul, torch.Tensor.mm, torch.Tensor.matmul, torch.Tensor.__matmul__)
BATCHED = (torch.bmm, torch.Tensor.bmm, *MATMUL)
TRANSPOSE = (torch.transpose, torch.Tensor.transpose)
_TENSOR: Any = torch.Tensor
TRANSPOSED = _TENSOR.T.__get__, _TENSOR.mT.__get__


class _Plainly:
    """Any function, with tensors of classes of ours as plain ones."""

    call = as_plain_tensors


class _Read(torch.Tensor):
    """What both have: the memory of a weight, a gradient that leads to `values`.

    plain: the frozen weight. collector, handle: of this forward. is_transposed: whether the last
    two dimensions are the other way round than they are stored.
    """

    plain: torch.Tensor
    collector: Collector
    handle: torch.Tensor
    is_transposed: bool

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        kwargs = kwargs or {}
        served = _serve(func, args, kwargs)
        if served is not NotImplemented:
            return served
        return _Plainly.call(func, types, args, kwargs)

    def turned(self) -> "_Read":
        """The last two dimensions the other way round."""
        turned = _Plainly.call(torch.Tensor.transpose, (), (self, -2, -1), {})
        return self._like(turned, self.plain.transpose(-2, -1), not self.is_transposed)

    def _like(self, handed: torch.Tensor, plain: torch.Tensor, is_transposed: bool) -> "_Read":
        read = handed.as_subclass(type(self))
        read.__dict__.update(self.__dict__, plain=plain, is_transposed=is_transposed)
        return read


class ExpertsWeight(_Read):
    """[experts, …, …]."""

    @classmethod
    def of(
        cls, handed: torch.Tensor, plain: torch.Tensor, values: torch.Tensor, pieces: Pieces
    ) -> "ExpertsWeight":
        """handed: an alias of the weight `plain` that leads to its values."""
        read = handed.as_subclass(cls)
        read.plain, read.is_transposed = plain, False
        read.collector = Collector(pieces, values)
        read.handle = read.collector.handle(values)
        return read

    def __getitem__(self, index: Any) -> torch.Tensor:
        number = _number(index)
        if number is not None:
            return self._one(number)
        if isinstance(index, torch.Tensor) and index.dim() == 1 and index.dtype == torch.int64:
            return self._gathered(index)
        return _Plainly.call(torch.Tensor.__getitem__, (), (self, index), {})

    def _stored(self) -> torch.Tensor:
        return self.plain.transpose(-2, -1) if self.is_transposed else self.plain

    def _one(self, number: int) -> torch.Tensor:
        collector = self.collector
        piece = collector.pieces.get(number % len(self.plain))
        if piece is None and collector.is_tied:
            return self.plain[number]
        matrix = self._stored()[number]
        handed = SliceAlias.apply(self.handle, matrix, collector, piece)
        read = handed.as_subclass(ExpertMatrix)
        read.__dict__.update(self.__dict__, plain=matrix, piece=piece, is_transposed=False)
        return read.turned() if self.is_transposed else read

    def _gathered(self, index: torch.Tensor) -> torch.Tensor:
        """A copy of an expert's matrix for each number of `index`."""
        copies = GatheredAlias.apply(self.handle, self._stored(), index, self.collector)
        return copies.transpose(-2, -1) if self.is_transposed else copies


class ExpertMatrix(_Read):
    """[…, …] of one expert. piece: what trains of it; None for nothing."""

    piece: Piece | None


def _number(index: Any) -> int | None:
    """The one expert that `index` names; None where it names several."""
    if isinstance(index, bool):
        return None
    if isinstance(index, int):
        return index
    if isinstance(index, torch.Tensor) and index.dim() == 0 and index.dtype != torch.bool:
        return int(index)
    return None


def _serve(func: Callable, args: tuple, kwargs: Mapping) -> Any:
    """What a product gives; NotImplemented for everything else."""
    first: Any = args[0] if args else None
    if isinstance(first, _Read):
        return _turned(func, first, args)
    if func is F.linear and isinstance(args[1] if len(args) > 1 else None, ExpertMatrix):
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return _product(first, args[1], bias, True)
    if func in MATMUL and len(args) == 2 and isinstance(args[1], ExpertMatrix):
        return _product(first, args[1], None, False)
    if func in BATCHED and len(args) == 2 and isinstance(args[1], ExpertsWeight):
        return _batched(func, first, args[1])
    tensors: list[Any] = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    if len(tensors) == 3 and isinstance(tensors[1], ExpertsWeight):
        input, read, ends = tensors
        return _grouped(func, args, kwargs, input, read, ends)
    return NotImplemented


def _turned(func: Callable, read: _Read, args: tuple) -> Any:
    if func in TRANSPOSE and {dim % read.dim() for dim in args[1:]} == {
        read.dim() - 2,
        read.dim() - 1,
    }:
        return read.turned()
    if func in TRANSPOSED and (read.dim() == 2 or func is TRANSPOSED[1]):
        return read.turned()
    return NotImplemented


def _product(
    input: torch.Tensor, read: ExpertMatrix, bias: torch.Tensor | None, is_linear: bool
) -> Any:
    """A product with one expert's matrix."""
    if input.dim() < 2 or isinstance(input, _Read):
        return NotImplemented
    matrix, piece = read.plain, read.piece
    output = product_of(input, matrix, bias, 1) if is_linear else torch.matmul(input, matrix)
    # the stored dimension that meets the input
    input_dim = 1 if is_linear != read.is_transposed else 0
    if piece is None:
        return Tap.apply(output, read.handle, None, read.collector, [], input_dim)
    size = input.size(-1)
    features, layout = piece.selection.restrict(input_dim, size)
    flat = input.detach().reshape(-1, size)
    kept = flat if features is None else flat.index_select(1, features)
    use = Use(piece, slice(None), slice(None), layout)
    return Tap.apply(output, read.handle, kept, read.collector, [use], input_dim)


def _grouped(
    func: Callable,
    args: tuple,
    kwargs: Mapping,
    input: torch.Tensor,
    read: ExpertsWeight,
    ends: torch.Tensor,
) -> Any:
    """Ranges of rows of the input, each with its expert.

    input: [tokens, in]. read: [experts, in, out]. ends: [experts], integers, where ranges end.
    """
    weight = read.plain
    is_grouped = input.dim() == 2 and ends.dim() == 1 and not ends.is_floating_point()
    if not is_grouped or len(ends) != len(weight) or input.size(1) != weight.size(1):
        return NotImplemented
    if ends.is_cuda and torch.cuda.is_current_stream_capturing():
        return NotImplemented  # nothing can be read into a graph: a dense gradient
    stops = ends.tolist()
    output = grouped_product(func, args, kwargs, input, read, weight, stops)
    return _tapped(output, read, input, [0, *stops[:-1]], stops)


def _batched(func: Callable, input: torch.Tensor, read: ExpertsWeight) -> Any:
    """As many tokens for each expert: [experts, tokens, in] and [experts, in, out]."""
    weight = read.plain
    if input.dim() != 3 or len(input) != len(weight):
        return NotImplemented
    output = func(input, weight)
    tokens = input.size(1)
    stops = [tokens * (expert + 1) for expert in range(len(weight))]
    flat = input.reshape(-1, input.size(2))
    return _tapped(output, read, flat, [0, *stops[:-1]], stops)


def _tapped(
    output: torch.Tensor,
    read: ExpertsWeight,
    input: torch.Tensor,
    starts: list[int],
    stops: list[int],
) -> torch.Tensor:
    """`output` of a product of `input` [tokens, in], of which each expert has a range."""
    pieces = read.collector.pieces
    chosen = [
        (pieces[expert], slice(starts[expert], stops[expert]))
        for expert in pieces
        if stops[expert] > starts[expert]
    ]
    input_dim = 1 if read.is_transposed else 0
    uses, kept = _kept(input.detach(), chosen, input_dim)
    return Tap.apply(output, read.handle, kept, read.collector, uses, input_dim)


def _kept(
    input: torch.Tensor, chosen: list[tuple[Piece, slice]], input_dim: int
) -> tuple[list[Use], torch.Tensor | None]:
    """What is kept of the input: rows of the experts that train, and their features where these
    are the same for all.
    """
    if not chosen:
        return [], None
    size = input.size(1)
    restricted = [piece.selection.restrict(input_dim, size) for piece, _ in chosen]
    features = restricted[0][0]
    is_same = all(other is features for other, _ in restricted)
    uses, start = [], 0
    for (piece, tokens), (_, layout) in zip(chosen, restricted):
        stop = start + tokens.stop - tokens.start
        on = layout if is_same else piece.selection.layout
        uses.append(Use(piece, tokens, slice(start, stop), on))
        start = stop
    kept = torch.cat([input[tokens] for _, tokens in chosen])
    if is_same and features is not None:
        kept = kept.index_select(1, features)
    return uses, kept
