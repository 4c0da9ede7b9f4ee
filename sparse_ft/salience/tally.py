"""Tally: what a score has accumulated of one weight: of every entry, or of its units alone."""

import torch

from ..ranks import Ranks
from .capture import Product
from .score import Score
from .units import Structure

STRIP = 1 << 20  # entries of a gradient that are made together where units are added up


class Tally:
    """The accumulator of one weight. reduced: of its units, not of its entries.

    weight: [rows, columns], detached. on_cpu: hold it in the memory of the CPU.
    """

    def __init__(
        self, score: Score, structure: Structure, weight: torch.Tensor, reduced: bool, on_cpu: bool
    ):
        self._score, self._structure, self._weight = score, structure, weight
        self._reduced = reduced
        self._device = torch.device("cpu") if on_cpu else weight.device
        self._dtype = torch.promote_types(weight.dtype, torch.float32)
        rows, columns = weight.shape
        shape = structure.grid((rows, columns)) if reduced else self._full(weight)
        self._acc = self._zeros(shape)
        self.is_reached = False

    def _full(self, weight: torch.Tensor) -> tuple[int, ...]:
        several = self._score.accumulators
        return tuple(weight.shape) if several == 1 else (several, *weight.shape)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def add(self, gradient: torch.Tensor) -> None:
        """One more gradient, dense [rows, columns]; it may be written to."""
        self.is_reached = True
        if not self._reduced:
            weight = self._weight.to(self._device)
            self._acc = self._score.updated(self._acc, weight, gradient.to(self._device))
            return
        for begin, end in self._strips():
            self._add_strip(begin, end, gradient[begin:end])

    def add_product(self, product: Product) -> None:
        """One more gradient that is a product: made strip by strip where units are added up."""
        if not self._reduced:
            self.add(product.rows(0, self._weight.size(0)))
            return
        self.is_reached = True
        for begin, end in self._strips():
            self._add_strip(begin, end, product.rows(begin, end))

    def _strips(self) -> list[tuple[int, int]]:
        """(begin, end) of runs of rows that no block crosses."""
        rows, columns = self._weight.shape
        height = self._structure.block((rows, columns))[0] if self._is_blocks else 1
        step = max(1, STRIP // (columns * height)) * height
        return [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]

    @property
    def _is_blocks(self) -> bool:
        return self._structure.kind == "blocks"

    def _add_strip(self, begin: int, end: int, gradient: torch.Tensor) -> None:
        weight = self._weight[begin:end]
        zeros = torch.zeros(gradient.shape, dtype=self._dtype, device=gradient.device)
        added = self._score.updated(zeros, weight, gradient)
        if self._is_blocks:
            rows, columns = self._weight.shape
            height, width = self._structure.block((rows, columns))
            sums = Structure("blocks", (min(height, end - begin), width)).summed(added)
            first = begin // height
        else:
            sums = self._structure.summed(added)
            first = begin if self._structure.kind == "rows" else 0
        self._acc[first : first + sums.size(0)] += sums.to(self._device)

    def over_ranks(self, ranks: Ranks) -> None:
        """The sum over the ranks."""
        there = self._acc.to(self._weight.device)
        self._acc = ranks.sum_(there.contiguous()).to(self._device)

    def finished(self, count: int) -> torch.Tensor:
        """The score of every entry [rows, columns], or of every unit [units].

        count: what a sum is divided by.
        """
        self._acc.div_(count)
        if self._reduced:
            return self._acc.reshape(-1)
        return self._score.finished(self._acc, self._weight.to(self._device))
