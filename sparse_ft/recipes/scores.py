"""Scores that a recipe alone needs, and the scores of all weights as tensors."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..salience import Score, select
from ..salience.units import fitted

Mapping = dict[str, torch.Tensor]


def block_mean(block_size: tuple[int, int], of_sizes: bool = False) -> Score:
    """E g (or E |g|), divided by the number of entries of the block that an entry lies in.

    With `combine="abs_of_sum"` a block is worth |the mean of E g|, one at a ragged edge by its own
    entries (SMT).
    """

    def update(acc: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        rows, columns = weight.shape
        height, width = fitted(block_size, (rows, columns))
        if of_sizes:
            gradient = gradient.abs()
        by_row = _extent(rows, height).to(gradient)
        by_column = _extent(columns, width).to(gradient)
        acc.add_(gradient / by_row[:, None] / by_column)

    name = "abs_mean" if of_sizes else "mean_abs"
    return Score(update, name=name, absolute=True, linear=True, additive=not of_sizes)


def _extent(length: int, step: int) -> torch.Tensor:
    """[length]: how far the block of each line extends; less at the end."""
    line = torch.arange(length, device="cpu")
    begin = line // step * step
    return (length - begin).clamp(max=step)


class Held:
    """A budget that holds what every entry is worth, in the order of the plan's weights."""

    def __init__(self) -> None:
        self.matrices: list[torch.Tensor] = []

    def pick(self, score: torch.Tensor, seed: int) -> torch.Tensor:
        self.matrices.append(score.detach().clone())
        return torch.zeros(1, dtype=torch.int64, device="cpu")


def scores_of(
    model: nn.Module,
    score: Any,
    batches: Iterable[Any] | None = None,
    *,
    loss: Any = None,
    targets: Any = None,
    seed: int = 0,
    max_batches: int | None = None,
) -> Mapping:
    """{weight: its score [rows, columns]}: dense, all of them, unlike anything that `select` holds.

    Arguments as in `sft.select`.
    """
    held = Held()
    plan = select(
        model, budget=held, structure="entries", score=score, batches=batches, loss=loss,
        targets=targets, seed=seed, max_batches=max_batches,
    )  # fmt: skip
    return dict(zip(plan, held.matrices))


def change_of_fisher(
    model: nn.Module, batches: Any, shifted: Any, weight: float, settings: dict[str, Any]
) -> Mapping:
    """{weight: E g² + weight · |E g² − E g² on the shifted batches|} (FisherTune)."""
    asked = {key: settings[key] for key in ("loss", "targets") if key in settings}
    here = scores_of(model, "fisher", batches, **asked)
    there = scores_of(model, "fisher", shifted, **asked)
    return {name: one + weight * (one - there[name]).abs() for name, one in here.items()}


class Subnet:
    """A budget: the entries where some rows and some columns of a matrix cross (LoSiA).

    share: of the rows, and of the columns. Chosen greedily: the rows of the largest sums, then the
    columns with the largest sums over these; or columns first, whichever is worth more.
    """

    def __init__(self, share: float):
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a share in (0, 1], got {share!r}")
        self.share = share

    def pick(self, score: torch.Tensor, seed: int) -> torch.Tensor:
        """int64, ascending flat positions. score: [rows, columns]."""
        high = max(1, round(self.share * score.size(0)))
        wide = max(1, round(self.share * score.size(1)))
        rows = _best(score.sum(1), high)
        columns = _best(score[rows].sum(0), wide)
        other_columns = _best(score.sum(0), wide)
        other_rows = _best(score[:, other_columns].sum(1), high)
        worth = score[rows][:, columns].sum()
        if score[other_rows][:, other_columns].sum() > worth:
            rows, columns = other_rows, other_columns
        return (rows[:, None] * score.size(1) + columns).reshape(-1)


def _best(sums: torch.Tensor, count: int) -> torch.Tensor:
    return sums.topk(count).indices.sort().values
