"""Collecting: the gradient of the values of all experts, written piece by piece where it belongs.

Autograd would make a tensor as large as all values for each expert, and add them up. Here each
product writes into one buffer, and what it hands on is empty.
"""

from typing import Any, NamedTuple

import torch

from .. import ops
from .._torch import current_backward
from ..double_backward import refuse_double_backward
from ..ops.layout import Layout
from ..products import flattened
from ..rebuild import cast
from .pieces import Piece, Pieces


class Use(NamedTuple):
    """One expert in one product.

    tokens: its rows of the output. kept: its rows of what was kept of the input. layout: of its
    piece, on the features that were kept.
    """

    piece: Piece
    tokens: slice
    kept: slice
    layout: Layout


class Collector:
    """Of one forward of one weight. pieces: what trains of each expert. values: its Parameter.

    Every product that must be waited for depends on a handle, which `handle` makes. is_tied:
    whether one does: without tokens for a chosen expert the gradient is zero, as a dense one is,
    and not missing.
    """

    def __init__(self, pieces: Pieces, values: torch.Tensor) -> None:
        self.pieces, self.like = pieces, values.detach()
        self.is_tied = False
        self._buffer: torch.Tensor | None = None
        self._backward = -1

    def handle(self, values: torch.Tensor) -> torch.Tensor:
        """Empty, and depends on the values. Not kept here: it leads back to this object."""
        return _Collect.apply(values, self)

    def buffer(self) -> torch.Tensor:
        """Where this backward writes, shaped as the values; zero before the first piece."""
        now = current_backward()
        if self._buffer is None or self._backward != now:
            self._buffer, self._backward = torch.zeros_like(self.like), now
        return self._buffer

    def take(self) -> torch.Tensor:
        """What was collected; the next backward begins anew."""
        buffer = self.buffer()
        self._buffer = None
        return buffer

    def nothing(self) -> torch.Tensor:
        """The gradient of a handle."""
        return self.like.new_empty(0)

    def add(
        self, uses: list[Use], grad_output: torch.Tensor, kept: torch.Tensor, input_dim: int
    ) -> None:
        """Write the gradients of `uses`.

        grad_output: [tokens, out]. kept: [tokens of the uses, features].
        """
        buffer = self.buffer()
        intos, lefts, rights, layouts = [], [], [], []
        for use in uses:
            given = cast(kept[use.kept], grad_output.dtype)
            sent = grad_output[use.tokens]
            left, right = (sent, given) if input_dim == 1 else (given, sent)
            into = buffer[use.piece.span]
            if use.piece.is_whole and into.dtype == left.dtype:
                into.view(left.size(1), right.size(1)).addmm_(left.T, right)
                continue
            intos.append(into)
            lefts.append(left)
            rights.append(right)
            layouts.append(use.layout)
        if intos:
            kinds, indices = [x.kind for x in layouts], [x.index for x in layouts]
            blocks = [size for x in layouts for size in (x.block_h, x.block_w)]
            ops.selected_wgrad_grouped_(intos, lefts, rights, kinds, indices, blocks)

    def add_dense(self, piece: Piece, grad_matrix: torch.Tensor) -> None:
        """Write what `piece` has of the gradient of its expert's matrix."""
        into = self.buffer()[piece.span]
        layout = piece.selection.layout
        into += ops.gather_selected(grad_matrix, layout, dtype=into.dtype).view(into.shape)


class _Collect(torch.autograd.Function):
    """Backward runs once all that depends on the handle has written."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, collector: Collector) -> torch.Tensor:
        ctx.collector = collector
        return values.new_empty(0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.collector.take(), None


class Tap(torch.autograd.Function):
    """The output of a product, whose gradient is looked at as it passes.

    kept: of the product's input, for `uses`. input_dim: the stored dimension that meets it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        handle: torch.Tensor,
        kept: torch.Tensor | None,
        collector: Collector,
        uses: list[Use],
        input_dim: int,
    ) -> torch.Tensor:
        collector.is_tied = True
        ctx.save_for_backward(kept)
        ctx.how = collector, uses, input_dim
        return output.data  # the same memory, and no view: it may be written to

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("experts")
        collector, uses, input_dim = ctx.how
        (kept,) = ctx.saved_tensors
        if uses:
            collector.add(uses, flattened(grad_output), kept, input_dim)
        return grad_output, collector.nothing(), None, None, None, None


class SliceAlias(torch.autograd.Function):
    """One expert's matrix, for who reads it in an unknown way: its dense gradient, for a moment."""

    @staticmethod
    def forward(
        ctx: Any,
        handle: torch.Tensor,
        matrix: torch.Tensor,
        collector: Collector,
        piece: Piece | None,
    ) -> torch.Tensor:
        ctx.how = collector, piece
        return matrix.detach()

    @staticmethod
    def backward(ctx: Any, grad_matrix: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("experts")
        collector, piece = ctx.how
        if piece is not None:
            collector.add_dense(piece, grad_matrix)
        return collector.nothing(), None, None, None


class GatheredAlias(torch.autograd.Function):
    """Copies of experts' matrices, one for each token: the copies' gradients, expert by expert."""

    @staticmethod
    def forward(
        ctx: Any,
        handle: torch.Tensor,
        weight: torch.Tensor,
        index: torch.Tensor,
        collector: Collector,
    ) -> torch.Tensor:
        ctx.save_for_backward(index.remainder(len(weight)))  # -1 is the last expert
        ctx.how = collector
        return weight[index]

    @staticmethod
    def backward(ctx: Any, grad_copies: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        refuse_double_backward("experts")
        collector = ctx.how
        (index,) = ctx.saved_tensors
        for expert, piece in collector.pieces.items():
            mine = grad_copies[index == expert]
            if len(mine):
                collector.add_dense(piece, mine.sum(0))
        return collector.nothing(), None, None, None


def dry_tap(output: torch.Tensor, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In a dry run, the output of the module that reads `weight`: what is kept and made for
    `values`, if tokens are spread evenly over the experts.
    """
    collector = Collector({}, values)
    share = values.numel() / weight.numel()
    tokens = output.numel() // output.size(-1)
    kept = output.new_empty(round(share * tokens), weight.size(-1))
    return Tap.apply(output, collector.handle(values), kept, collector, [], 1)
