"""Rules by which deltas that change the same entries are mixed, as mergekit defines them.

A rule works on differences from the base, [deltas, n]: what each delta adds to each entry, 0 where
it does not touch it.
"""

import dataclasses
from collections.abc import Callable

import torch

Trim = Callable[[torch.Tensor, float, torch.Generator], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One way to mix.

    trim: what is left of each delta's differences [n]; consensus: whether only those with the sign
    of the weighted sum count; normalize: whether what counted is divided by its weights. reference:
    the paper, or mergekit's name.
    """

    reference: str
    trim: Trim | None = None
    consensus: bool = False
    normalize: bool = False


def largest(difference: torch.Tensor, density: float, draw: torch.Generator) -> torch.Tensor:
    """The share `density` of the entries that differ most; the others are 0 (TIES)."""
    kept = int(density * len(difference))
    if density >= 1:
        return difference
    best = difference.abs().topk(max(kept, 1)).indices
    return torch.zeros_like(difference).index_copy(0, best, difference[best])


def dropped(difference: torch.Tensor, density: float, draw: torch.Generator) -> torch.Tensor:
    """Each entry is kept with probability `density`; the sum of magnitudes stays (DARE).

    That is mergekit's scaling; the paper divides by the density.
    """
    if density >= 1:
        return difference
    chances = torch.full(difference.shape, density, dtype=torch.float32, device="cpu")
    left = difference * torch.bernoulli(chances, generator=draw)
    before, after = difference.abs().sum(), left.abs().sum()
    return left if min(before, after) < 1e-7 else left * (before / after)


RULES = {
    "sum": Rule("task arithmetic, Ilharco et al. 2023"),
    "mean": Rule("the mean of those that touch an entry", normalize=True),
    "ties": Rule("TIES, Yadav et al. 2023", trim=largest, consensus=True, normalize=True),
    "dare": Rule("DARE, Yu et al. 2024; mergekit's dare_linear", trim=dropped),
    "dare_ties": Rule("DARE with TIES' signs; mergekit's dare_ties", trim=dropped, consensus=True),
}


def mix(
    rule: Rule,
    differences: torch.Tensor,
    touched: torch.Tensor,
    weights: torch.Tensor,
    density: float,
    draw: torch.Generator,
) -> torch.Tensor:
    """What `rule` adds to the base: [n] of differences [deltas, n], in their dtype.

    touched: bool [deltas, n]. weights: [deltas]. density, draw: of what is trimmed.
    """
    if rule.trim is not None:
        trimmed = torch.zeros_like(differences)
        for number, (difference, here) in enumerate(zip(differences, touched)):
            trimmed[number, here] = rule.trim(difference[here], density, draw)
        differences = trimmed
    weighted = differences * weights[:, None]
    counts = touched
    if rule.consensus:
        majority = torch.where(weighted.sum(0) >= 0, 1.0, -1.0).to(weighted.dtype)
        counts = weighted.sign() == majority
    mixed = (weighted * counts).sum(0)
    if not rule.normalize:
        return mixed
    divisor = (weights[:, None] * counts).sum(0)
    return mixed / torch.where(divisor == 0, 1.0, divisor)
