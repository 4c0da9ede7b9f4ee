"""Draws: the seeds of scores that draw labels or dropout, another for every batch."""

import torch

from ..ranks import Ranks

LARGEST = 2**63 - 1


class Draws:
    """Seeds for the objectives of one run over the batches, in order: the first is `seed` itself,
    the others a generator of it draws.

    In several processes each takes its own of them, as one process would that has the first batch
    of every rank, then the second. A new run begins at the first again, so that every pass over
    the batches draws alike.
    """

    def __init__(self, seed: int, ranks: Ranks) -> None:
        self._ranks = ranks
        self._generator = torch.Generator().manual_seed(seed)
        self._next = seed
        self._skip(ranks.rank)

    def take(self) -> int:
        """The seed of the next batch, or example, of this process."""
        own = self._next
        self._skip(self._ranks.size)
        return own

    def _skip(self, count: int) -> None:
        for _ in range(count):
            self._next = int(torch.randint(LARGEST, (), generator=self._generator, device="cpu"))
