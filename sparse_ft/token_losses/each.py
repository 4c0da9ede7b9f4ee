"""One number a token, of logits that are never kept, and its gradient.

Where the head is frozen, the gradient of each token's number to its own hidden state is made in the
forward: backward multiplies its rows. Otherwise backward makes the logits again, chunk by chunk.
"""

from typing import Any, Protocol

import torch

from ..double_backward import first_order
from .chunks import Chunk, HeadGradients, chunks, wide_dtype


class Objective(Protocol):
    """What is computed of each token's logits. outputs: how many numbers that is."""

    outputs: int

    def numbers(self, chunk: Chunk) -> tuple[torch.Tensor, ...]:
        """`outputs` tensors [c], wide. Leaves the logits as they are."""

    def gradient(self, chunk: Chunk, grads: list[torch.Tensor | None]) -> torch.Tensor:
        """Of the logits [c, V], which may be written over. grads: of each of the numbers, [c, 1],
        wide; None where that has none.
        """


def each_token(
    objective: Objective,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    values: torch.Tensor | None,
    layout: Any,
    ignored: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """`objective.outputs` tensors [n], one number a token of hidden [n, H]; fp32, fp64 for fp64.

    weight: [V, H]. bias: [V]. values: the entries of a frozen weight that train, by their layout.
    ignored: [n], tokens whose numbers are 0 without a gradient, whatever they are; None for none.
    Kept for backward: one gradient shaped like hidden if the head is frozen and there is one number
    a token, else hidden itself.
    """
    return _EachToken.apply(hidden, weight, bias, values, layout, objective, ignored)


class _EachToken(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor | None,
        layout: Any,
        objective: Objective,
        ignored: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        needs = ctx.needs_input_grad[:4]
        in_forward = needs == (True, False, False, False) and objective.outputs == 1
        grads = HeadGradients(
            hidden, weight, bias, values, layout, needs if in_forward else (False,) * 4
        )
        found = torch.empty(
            objective.outputs, hidden.size(0), dtype=wide_dtype(hidden), device=hidden.device
        )
        for chunk in chunks(hidden, weight, bias, ignored):
            for place, numbers in zip(found, objective.numbers(chunk), strict=True):
                place[chunk.rows] = numbers
            if in_forward:
                ones = chunk.counted(torch.ones_like(chunk.norm))
                grads.add(chunk.rows.start, chunk.hidden, objective.gradient(chunk, [ones]))
        if ignored is not None:
            found.masked_fill_(ignored, 0)
        ctx.set_materialize_grads(False)
        ctx.ignored = ignored
        ctx.how = None if in_forward else (objective, layout)
        if in_forward:
            ctx.save_for_backward(*grads.all()[:1])
        elif any(needs):
            ctx.save_for_backward(hidden, weight, bias, values)
        return tuple(numbers.clone() for numbers in found)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        ignored = ctx.ignored
        if ignored is not None:
            grads = tuple(g if g is None else g.masked_fill(ignored, 0) for g in grads)
        if ctx.how is None:
            return _scaled_rows(ctx.saved_tensors[0], grads[0]), *(None,) * 6
        objective, layout = ctx.how
        hidden, weight, bias, values = ctx.saved_tensors
        made = HeadGradients(hidden, weight, bias, values, layout, ctx.needs_input_grad[:4])
        for chunk in chunks(hidden, weight, bias, ignored):
            parts = [None if grad is None else grad[chunk.rows, None] for grad in grads]
            made.add(chunk.rows.start, chunk.hidden, objective.gradient(chunk, parts))
        return *made.all(), None, None, None


def _scaled_rows(rows: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor | None:
    """rows [n, H] times factors [n], rounded once."""
    return None if factors is None else (rows * factors[:, None]).to(rows.dtype)
