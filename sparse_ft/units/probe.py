"""Probe: which features of an input depend on which features of the outputs before it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Source(NamedTuple):
    """An output that was cut, or a parameter.

    dim: of its features. ties: whether what depends on one of them belongs together; a norm's
    weight, which all heads share, ties nothing. key: whatever tells sources apart.
    """

    tensor: torch.Tensor
    dim: int
    ties: bool = True
    key: Any = None

    @property
    def size(self) -> int:
        return self.tensor.size(self.dim)


class Probe:
    """What lies between `sources` and `input`, whose features are along `dim`.

    All answers are exact but for chance of measure zero: a feature that depends on another has
    a gradient that is not 0 for random numbers, and 0 to the last bit where it does not.
    """

    def __init__(self, input: torch.Tensor, dim: int, sources: Sequence[Source]) -> None:
        self.input, self.dim = input, dim
        self.size = input.size(dim)
        self._generator = torch.Generator().manual_seed(0)
        self._is_twice = True
        self._table: list[torch.Tensor] | None = None  # of each source [size, its features]
        self.every = torch.ones(self.size, dtype=torch.bool, device="cpu")
        self.sources = [source for source in sources if source.tensor.requires_grad]
        if not input.requires_grad:
            self.sources = []
        reached = self.rows(self.every)
        self.sources = [source for source, rows in zip(self.sources, reached) if rows.any()]

    def tying(self, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`rows` without those of sources that tie nothing together."""
        return [
            mine if source.ties else torch.zeros_like(mine)
            for mine, source in zip(rows, self.sources)
        ]

    def rows(self, columns: torch.Tensor) -> list[torch.Tensor]:
        """Of each source, bool: which of its features any of `columns`, bool [size], depends on."""
        gradients = self._gradients(self._random(columns))
        return [_alive(gradient, source) for gradient, source in zip(gradients, self.sources)]

    def columns(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """bool [size]: which features of the input depend on any of `rows`, bool of each source."""
        if not any(bool(mine.any()) for mine in rows):
            return torch.zeros(self.size, dtype=torch.bool, device="cpu")
        if self._is_twice:
            try:
                return self._columns_at_once(rows)
            except RuntimeError:  # something on the way has no second derivative
                self._is_twice = False
        return self._columns_one_by_one(rows)

    def distrust(self) -> bool:
        """From now on ask for first derivatives only, one feature at a time: something on the way
        gives none of its derivative, or a wrong one. Whether that changes anything.
        """
        changes, self._is_twice = self._is_twice, False
        return changes

    def mixes_positions(self) -> bool:
        """Whether one place of the input depends on several places of a source."""
        reached = self._from_the_last_place()
        return any(mine is not None and mine.any(1).sum() > 1 for mine in reached)

    def read_here(self) -> list[torch.Tensor]:
        """Of each source, bool: which of its features one place of the input reads at that place
        alone, as queries are, and not at others, as keys and values are.
        """
        places = self.input.numel() // max(self.size, 1)
        found = []
        for mine, source in zip(self._from_the_last_place(), self.sources):
            if mine is None or len(mine) != places:
                found.append(torch.zeros(source.size, dtype=torch.bool, device="cpu"))
            else:
                found.append((mine[-1] & ~mine[:-1].any(0)).cpu())
        return found

    def _from_the_last_place(self) -> list[torch.Tensor | None]:
        """Of each source, bool [places, features]: what the last place of the input depends on;
        None of one that has no places or ties nothing.
        """
        one = torch.zeros_like(self.input).movedim(self.dim, -1).reshape(-1, self.size)
        one[-1] = self._numbers((self.size,))
        shape = self.input.movedim(self.dim, -1).shape
        gradients = self._gradients(one.view(shape).movedim(-1, self.dim))
        found: list[torch.Tensor | None] = []
        for gradient, source in zip(gradients, self.sources):
            if gradient is None or not source.ties or gradient.dim() < 2:
                found.append(None)
            else:
                found.append(gradient.movedim(source.dim, -1).flatten(0, -2).ne(0))
        return found

    def _columns_at_once(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """The product of the Jacobian with numbers in `rows`: the gradient of a gradient."""
        weights = self._random(self.every).requires_grad_()
        gradients = self._gradients(weights, create_graph=True)
        total = self.input.new_zeros(())
        for gradient, source, mine in zip(gradients, self.sources, rows):
            if gradient is not None and mine.any():
                shape = [1] * gradient.dim()
                shape[source.dim] = -1
                chosen = mine.to(gradient.device).view(shape)
                total = total + (gradient * (self._numbers(gradient.shape) * chosen)).sum()
        if not total.requires_grad:
            return torch.zeros(self.size, dtype=torch.bool, device="cpu")
        (product,) = torch.autograd.grad(total, weights, allow_unused=True)
        return _alive(product, Source(self.input, self.dim))

    def _columns_one_by_one(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        if self._table is None:
            ones = torch.eye(self.size, dtype=torch.bool, device="cpu")
            every = [self.rows(one) for one in ones]
            self._table = [torch.stack(mine) for mine in zip(*every)]
        found = torch.zeros(self.size, dtype=torch.bool, device="cpu")
        for reached, mine in zip(self._table, rows):
            found |= reached[:, mine].any(1)
        return found

    def _gradients(
        self, weights: torch.Tensor, create_graph: bool = False
    ) -> tuple[torch.Tensor | None, ...]:
        if not self.sources:
            return ()
        return torch.autograd.grad(
            self.input,
            [source.tensor for source in self.sources],
            weights,
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
        )

    def _random(self, columns: torch.Tensor) -> torch.Tensor:
        """Like the input: random numbers in these columns, 0 in the others."""
        shape = [1] * self.input.dim()
        shape[self.dim] = -1
        return self._numbers(self.input.shape) * columns.to(self.input.device).view(shape)

    def _numbers(self, shape: Sequence[int]) -> torch.Tensor:
        numbers = torch.randn(tuple(shape), generator=self._generator, device="cpu")
        return numbers.to(self.input.device, self.input.dtype)


def _alive(gradient: torch.Tensor | None, source: Source) -> torch.Tensor:
    """bool [size], on the CPU: the features with a gradient anywhere."""
    if gradient is None:
        return torch.zeros(source.size, dtype=torch.bool, device="cpu")
    features = gradient.movedim(source.dim, -1)
    return features.reshape(-1, features.size(-1)).ne(0).any(0).cpu()
