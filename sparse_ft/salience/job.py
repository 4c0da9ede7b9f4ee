"""Job: what one call of `select` was asked for, as scores and budgets need it."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from ..places import matrix_shape
from ..quantised.quantiser import quantiser_of
from ..ranks import Ranks
from .losses import Loss
from .progress import followed, number_of
from .units import Structure

OF_A_LOADER = 8  # batches that are taken of a DataLoader


class Batches:
    """The user's batches, at most `most` of them. With `keep` they can be gone through again."""

    def __init__(self, batches: Iterable[Any], most: int | None):
        if most is None and isinstance(batches, DataLoader):
            most = OF_A_LOADER
        self._batches, self._most = batches, most
        self._begun: Iterator[Any] | None = None
        self.total = number_of(batches)
        if self.total is not None and most is not None:
            self.total = min(self.total, most)

    def __iter__(self) -> Iterator[Any]:
        begun, self._begun = self._begun, None
        return begun if begun is not None else itertools.islice(self._batches, self._most)

    def first(self) -> Any:
        """The first batch, which comes again when all are gone through; None if there is none."""
        batches = iter(self)
        for batch in batches:
            self._begun = itertools.chain([batch], batches)
            return batch
        return None

    def keep(self) -> None:
        """Hold them all, for what runs the model more than once."""
        if not isinstance(self._batches, list):
            self._batches = list(self)
            self.total = len(self._batches)


def matrix_of(model: nn.Module, name: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight `name` of a model as its matrix, detached; dequantised where it is quantised."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    quantiser = quantiser_of(owner) if attribute == "weight" else None
    if quantiser is not None:
        return quantiser.dequantise(owner, torch.float32)
    return weight.detach().reshape(matrix_shape(model, name))


@dataclasses.dataclass
class Job:
    """weights: {name: parameter} to choose from.

    loss: (model, batch) -> scalar, checked where it comes out; given_loss: the user's, None for
    the model's own. accumulate, passes: see `select`.
    """

    model: nn.Module
    weights: dict[str, nn.Parameter]
    structure: Structure
    batches: Batches | None
    loss: Callable[[nn.Module, Any], torch.Tensor]
    ranks: Ranks
    seed: int = 0
    accumulate: str = "device"
    passes: int = 1
    recompute: bool = False
    is_converted: bool = False
    shown: bool = False
    given_loss: Loss | None = None

    @property
    def known_batches(self) -> Batches:
        """The batches, for who cannot do without."""
        if self.batches is None:
            raise ValueError("batches: expected an iterable of batches, got None")
        return self.batches

    def shape(self, name: str) -> tuple[int, int]:
        """(rows, columns) of the matrix of a weight."""
        return matrix_shape(self.model, name)

    def matrix(self, name: str) -> torch.Tensor:
        """A weight [rows, columns], detached; dequantised where it is quantised."""
        return matrix_of(self.model, name, self.weights[name])

    def followed(self, label: str) -> Iterator[Any]:
        """The batches, their number shown as they go."""
        batches = self.known_batches
        return followed(batches, label, batches.total, self.shown)


class Matrices:
    """(name, weight [rows, columns], detached) of every weight to choose from."""

    def __init__(self, job: Job):
        self._job = job

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name in self._job.weights:
            yield name, self._job.matrix(name)
