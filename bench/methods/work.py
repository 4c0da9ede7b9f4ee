"""What is still to be run: the next job, from the rows there are.

First every method with seed 0, a rate after the other, then the bytes of each, then the best
recipes and the baselines with more seeds, at the rate that validation chose.
"""

import statistics
from dataclasses import dataclass

from bench.methods.methods import MOST, STEP
from bench.methods.rows import BYTES, RUN

BEST = 5  # recipes that are run with every seed
WITH_SEEDS = ("full", "lora", "lora_r1")


@dataclass(frozen=True)
class Job:
    kind: str
    method: str
    lr: float
    seed: int


class Rows:
    """The rows of one table, asked as the search needs it."""

    def __init__(self, rows, larger_is_better):
        self.by_key = {(r.kind, r.method, f"{r.lr:.3g}", r.seed): r for r in rows}
        self._sign = 1 if larger_is_better else -1

    def has(self, job):
        return (job.kind, job.method, f"{job.lr:.3g}", job.seed) in self.by_key

    def tried(self, method):
        """{rate: how good on validation}, of seed 0; a run that failed is the worst."""
        found = {}
        for row in self.by_key.values():
            if row.kind == RUN and row.method == method and row.seed == 0:
                good = self._sign * row.validation
                found[row.lr] = good if good == good else float("-inf")
        return dict(sorted(found.items()))

    def best_rate(self, method):
        """The rate that validation chooses, None where none was tried."""
        tried = self.tried(method)
        if not tried:
            return None
        middle = statistics.median(tried)  # of equals the one with the most room about it
        return max(tried, key=lambda rate: (tried[rate], -abs(rate - middle)))

    def good(self, method):
        tried = self.tried(method)
        return max(tried.values(), default=float("-inf"))


def next_rate(method, rows):
    """The next rate of a method: its first three, then one beyond an edge that is the best."""
    tried = rows.tried(method.name)
    for rate in method.rates:
        if not any(abs(rate / other - 1) < 1e-2 for other in tried):
            return rate
    rates = list(tried)
    best = rows.best_rate(method.name)
    if len(rates) >= MOST or best not in (rates[0], rates[-1]):
        return None
    if tried[best] == float("-inf"):
        return None
    return best / STEP if best == rates[0] else best * STEP


def jobs(methods, rows, seeds):
    """The next job, asked again after each is done. methods: {name: Method}."""
    # every method once before any has two rates: a table that was cut compares them all
    fewest = sorted(methods.values(), key=lambda method: len(rows.tried(method.name)))
    for method in fewest:
        rate = next_rate(method, rows)
        if rate is not None:
            return Job(RUN, method.name, rate, 0)
    for name in methods:
        job = Job(BYTES, name, methods[name].rates[0], 0)
        if not rows.has(job):
            return job
    for seed in range(1, seeds):
        for name in seeded(methods, rows):
            job = Job(RUN, name, rows.best_rate(name), seed)
            if not rows.has(job):
                return job
    return None


def seeded(methods, rows):
    """The methods that are run with every seed."""
    able = [name for name in methods if rows.good(name) > float("-inf")]
    recipes = [name for name in able if methods[name].kind == "recipe"]
    best = sorted(recipes, key=rows.good, reverse=True)[:BEST]
    return [*(name for name in WITH_SEEDS if name in able), *best]
