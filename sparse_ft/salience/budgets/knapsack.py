"""most_valuable: whole tensors worth the most within a cost, each with the way down to it."""

from collections.abc import Sequence
from typing import NamedTuple

MOST = 20_000  # combinations that are kept at once


class Step(NamedTuple):
    """One tensor, in the order the backward reaches them.

    value: what it is worth. own: the cost of its gradient. passing: the cost of coming here
    from the tensor before.
    """

    value: float
    own: int
    passing: int


class Combination(NamedTuple):
    """cost: of the gradients.

    last: the number of the last tensor in it, None for none; before: the combination without
    that.
    """

    cost: int
    value: float
    last: int | None = None
    before: "Combination | None" = None

    def members(self) -> list[int]:
        """The numbers of its tensors, ascending."""
        found = []
        at: Combination | None = self
        while at is not None and at.last is not None:
            found.append(at.last)
            at = at.before
        return found[::-1]


def most_valuable(steps: Sequence[Step], budget: int) -> list[int]:
    """The numbers of the tensors with the largest sum of values whose cost is within `budget`.

    The cost: of the gradients of those chosen, and of passing to the last of them. For every depth
    that the backward may reach, a knapsack of what the passing leaves over; of its combinations
    those are kept than which none is both cheaper and better (Nemhauser and Ullmann 1969). It
    equals trying all of them; beyond 20,000 kept ones the best of each of as many ranges of cost
    stay. Of equals the first reached wins.
    """
    kept = [Combination(0, 0.0)]
    best = kept[0]
    passed = 0
    for number, step in enumerate(steps):
        passed += step.passing
        left = budget - passed
        if left < 0:
            break
        kept = [one for one in kept if one.cost <= left]
        more = [
            Combination(one.cost + step.own, one.value + step.value, number, one)
            for one in kept
            if one.cost + step.own <= left
        ]
        kept = _undominated(kept, more)
        if len(kept) > MOST:
            kept = _best_of_ranges(kept, left)
        if kept[-1].value > best.value:
            best = kept[-1]
    return best.members()


def _undominated(kept: list[Combination], more: list[Combination]) -> list[Combination]:
    """Ascending in cost and in value."""
    found: list[Combination] = []
    for one in sorted(kept + more, key=lambda one: (one.cost, -one.value)):
        if not found or one.value > found[-1].value:
            found.append(one)
    return found


def _best_of_ranges(kept: list[Combination], most: int) -> list[Combination]:
    best = {}
    for one in kept:
        best[one.cost * MOST // max(most, 1)] = one
    return list(best.values())
