"""Score: a way to rate the entries of a weight by its gradients, in three lines of the user's."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..messages import described

Matrix = torch.Tensor  # [rows, columns] of a weight, as `sft.matrix_shape` has it
Update = Callable[[torch.Tensor, Matrix, Matrix], torch.Tensor | None]
Finish = Callable[[torch.Tensor, Matrix], torch.Tensor]
Objectives = Callable[[nn.Module, Any, int], Iterable[torch.Tensor]]
PER = ("batch", "example")


def as_it_is(acc: torch.Tensor, weight: Matrix) -> torch.Tensor:
    """The accumulator itself."""
    return acc


@dataclasses.dataclass(frozen=True)
class Score:
    """How much each entry of a weight matters, from its gradients over a few batches.

        Score(update=lambda acc, W, g: acc.add_(g.abs()))                        # E|g|
        Score(update=lambda acc, W, g: acc.add_(g), finish=lambda acc, W: (acc * W).abs())
        Score(update=lambda acc, W, g: acc.addcmul_(g, g), per="example")        # E g²

    update: called with the accumulator, the weight and one gradient, all [rows, columns]
    (`sft.matrix_shape`); writes to the accumulator, or returns a new one. It begins with zeros, in
    fp32 (fp64 for a weight in fp64), whatever the weight's dtype. The gradient may be written to.
    finish: the score, larger is better, from the accumulator and the weight; may write to the
    accumulator.
    per: "batch", one gradient a batch, or "example", one an example. With "example" a `loss` may
    return one loss an example, [examples]; batches of equal examples then need one backward.

    average: the accumulator is a sum; `finish` gets its mean over the batches or examples, of all
    processes. False: it gets what was accumulated, in several processes the mean of theirs.
    absolute: rank by the size of what `finish` gives, whatever its sign. `combine="abs_of_sum"`
    adds up rows, columns and blocks before the sign is dropped.
    linear: each update adds to an entry what depends on W and g of this entry alone, and `finish`
    returns the accumulator. Rows, columns and blocks are then added up as gradients come, without
    an accumulator of the weight's size.
    additive: two parts of one gradient may be given one after the other.
    accumulators: how many numbers an entry. From 2 on the accumulator is [number, rows, columns].
    objectives: what to differentiate instead of the loss: callable (model, batch, seed) -> losses;
    the seed is another for each batch (for each example, where one is run by itself).

    Raises TypeError or ValueError that name the argument.
    """

    update: Update
    finish: Finish = as_it_is
    per: str = "batch"
    _: dataclasses.KW_ONLY
    name: str = "a score of yours"
    average: bool = True
    absolute: bool = False
    linear: bool = False
    additive: bool = False
    accumulators: int = 1
    objectives: Objectives | None = None
    of_magnitudes: bool = False  # gradients are taken with |W| in the place of W

    needs_batches = True

    def __post_init__(self) -> None:
        for name in ("update", "finish"):
            if not callable(getattr(self, name)):
                got = described(getattr(self, name))
                raise TypeError(f"{name}: expected a callable, got {got}")
        if self.per not in PER:
            raise ValueError(f"per: expected 'batch' or 'example', got {self.per!r}")
        if not (isinstance(self.accumulators, int) and self.accumulators > 0):
            raise ValueError(f"accumulators: expected a positive int, got {self.accumulators!r}")

    def updated(self, acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> torch.Tensor:
        """The accumulator after one more gradient."""
        new = self.update(acc, weight, gradient)
        if new is None:
            return acc
        if not isinstance(new, torch.Tensor) or new.shape != acc.shape:
            raise ValueError(
                f"score: update of {self.name!r} returned {described(new)}; expected None or a"
                f" tensor of the accumulator's shape {list(acc.shape)}"
            )
        return new

    def finished(self, acc: torch.Tensor, weight: Matrix) -> Matrix:
        """The score of every entry."""
        score = self.finish(acc, weight)
        if not isinstance(score, torch.Tensor) or score.shape != weight.shape:
            raise ValueError(
                f"score: finish of {self.name!r} returned {described(score)}; expected a tensor of"
                f" the weight's shape {list(weight.shape)}"
            )
        return score
