"""The arithmetic of the harness: quantiles, paired ratios, crossovers."""

import math
from dataclasses import dataclass


def quantile(numbers, share):
    """The `share`-quantile (0 … 1) of a list, linear between neighbours."""
    ordered = sorted(numbers)
    if not ordered:
        raise ValueError("numbers: there is nothing to take a quantile of")
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def median(numbers):
    return quantile(numbers, 0.5)


@dataclass(frozen=True)
class Times:
    """Seconds of one call over rounds."""

    p20: float
    p50: float
    p80: float
    rounds: int

    @classmethod
    def of(cls, seconds):
        seconds = list(seconds)
        return cls(*(quantile(seconds, share) for share in (0.2, 0.5, 0.8)), len(seconds))

    def fields(self, unit, median="p50"):
        """As the fields of a row. unit: so many in a second; median: the name of p50 there."""
        p20, p50, p80 = (unit * time for time in (self.p20, self.p50, self.p80))
        return {"p20": p20, median: p50, "p80": p80, "rounds": self.rounds}


def paired_ratio(numerator, denominator):
    """Median of numerator / denominator over the rounds that both took part in.

    {round: seconds} each. None without one.

    A machine that is slow for a while is slow for both halves of a pair, so the ratio drifts less
    than either time.
    """
    rounds = numerator.keys() & denominator.keys()
    return median([numerator[r] / denominator[r] for r in rounds]) if rounds else None


def crossovers(densities, ratios):
    """Densities at which the ratio passes 1, between neighbours on a logarithmic scale of both."""
    points = sorted((d, r) for d, r in zip(densities, ratios, strict=True) if d > 0 and r and r > 0)
    found = []
    for (d0, r0), (d1, r1) in zip(points, points[1:]):
        if (r0 - 1) * (r1 - 1) < 0:
            share = math.log(r0) / (math.log(r0) - math.log(r1))
            found.append(math.exp(math.log(d0) + share * (math.log(d1) - math.log(d0))))
    return found
