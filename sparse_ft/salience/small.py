"""pick_small: the best of units that are few enough to be sorted together."""

import torch

from .budgets import Allowance
from .lots import drawn

Numbers = dict[str, torch.Tensor]  # {name of a weight: [units]}


def pick_small(
    scores: Numbers,
    sizes: Numbers,
    allowance: Allowance,
    floors: dict[str, int],
    caps: dict[str, int],
    seed: int,
) -> Numbers:
    """{name: int64, ascending: which of its units train}; a weight of which none does is missing.

    scores: what each unit is worth. sizes: how many entries each has. Every weight's floor is taken
    first, then the best of all up to the caps, in order, until the next one is more than the
    allowance leaves. One unit is taken at least. Equal scores are ordered by `seed`.
    """
    names = list(scores)
    score = torch.cat([scores[name] for name in names])
    size = torch.cat([sizes[name] for name in names])
    counts = torch.tensor([scores[name].numel() for name in names], device="cpu")
    owner = torch.repeat_interleave(torch.arange(len(names), device="cpu"), counts)
    unit = torch.cat([torch.arange(count, device="cpu") for count in counts.tolist()])

    order = drawn(score.numel(), score.numel(), seed)
    order = order[score[order].sort(descending=True, stable=True).indices]
    rank = _rank_within(owner[order])
    floor = torch.tensor([floors[name] for name in names], device="cpu")[owner[order]]
    cap = torch.tensor([caps[name] for name in names], device="cpu")[owner[order]]
    # the floors' units come first, those above the caps not at all; both keep their order
    order = torch.cat((order[rank < floor], order[(rank >= floor) & (rank < cap)]))

    taken = order[: _how_many(score[order], size[order], allowance, float(score.sum()))]
    picked = {}
    for number, name in enumerate(names):
        mine = unit[taken[owner[taken] == number]].sort().values
        if mine.numel():
            picked[name] = mine
    return picked


def _how_many(score: torch.Tensor, size: torch.Tensor, allowance: Allowance, total: float) -> int:
    """How many of these, which are in the order they are taken in."""
    if allowance.units is not None:
        return allowance.units
    if allowance.entries is not None:
        return max(1, int((size.cumsum(0) <= allowance.entries).sum()))
    reached = score.cumsum(0)
    needed = int((reached < allowance.known_share * total).sum()) + 1
    return min(needed, max(1, int((score > 0).sum())))


def _rank_within(owner: torch.Tensor) -> torch.Tensor:
    """[units]: how many of the same owner come before."""
    order = owner.sort(stable=True).indices
    counts = owner.bincount()
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(owner)
    rank[order] = torch.arange(owner.numel(), device="cpu") - first[owner[order]]
    return rank
