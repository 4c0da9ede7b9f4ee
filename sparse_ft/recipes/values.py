"""What trains of a converted model, by the names of its plan."""

import glob
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..converted import holders_of
from ..nn import origin_of
from ..optim import SelectiveAdamW
from ..salience.job import Batches
from ..selection import Selection

NO_BATCH = "batches: expected at least one batch, got none"


def values_of(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """{name: the values of its selected entries}."""
    holders = holders_of(model)
    return {name: holders[name]._parameters["values"] for name in names}


def selection_of(model: nn.Module, name: str) -> Selection:
    """Which entries of a weight train now."""
    return holders_of(model)[name]._sparse_ft_state.selection


def moved(values: torch.Tensor) -> torch.Tensor:
    """How far values are from the pretrained ones, signed, in their dtype."""
    origin = origin_of(values)
    if origin is None:
        raise ValueError("model: its pretrained values were not kept; convert with origin=True")
    return values.detach() - origin.to(values.dtype)


def literally(names: Iterable[str]) -> list[str]:
    """Patterns that mean these names alone."""
    return [glob.escape(name) for name in names]


def cycled(batches: Any) -> Iterator[Any]:
    """The batches, again and again, one at a time. Raises ValueError for none."""
    if batches is None:
        raise ValueError("batches: the method looks at gradients, got None")
    if iter(batches) is not batches:
        if next(iter(batches), None) is None:
            raise ValueError(NO_BATCH)
        return itertools.chain.from_iterable(itertools.repeat(batches))
    first = list(itertools.islice(batches, 1))  # can be gone through once: they are held
    if not first:
        raise ValueError(NO_BATCH)
    return itertools.cycle(itertools.chain(first, batches))


def several(batches: Any, most: int | None = None) -> list[Any] | None:
    """`most` of the batches, by default all, 8 of a DataLoader, as `sft.select` takes them; None
    for None.
    """
    return None if batches is None else list(Batches(batches, most))


def saved(generator: torch.Generator) -> str:
    """The state of a generator, as text."""
    return bytes(generator.get_state().tolist()).hex()


def resume(generator: torch.Generator, text: str) -> None:
    """Go on from what `saved` gave."""
    generator.set_state(torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8, device="cpu"))


def forget(optimizer: torch.optim.Optimizer | None, parameter: nn.Parameter) -> None:
    """Free what the optimiser knows of a parameter; it begins anew with its next gradient."""
    if isinstance(optimizer, SelectiveAdamW):
        optimizer.forget(parameter)
    elif optimizer is not None:
        optimizer.state.pop(parameter, None)
