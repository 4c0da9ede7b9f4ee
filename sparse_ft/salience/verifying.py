"""verified: which linear layers give their gradient as two factors, found by trying: the gradients
of one batch are compared with autograd's, by a few numbers of each.

Layers fail that are called twice, whose weight is read past their forward, or whose first dimension
is not the examples'; they go the plain way.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .capture import Factors, Probe, capture
from .examples import example, number_of_examples, weights_of
from .job import Job
from .score import Score
from .untouched import Untouched, untouched

NEAR = 1e-3  # relative distance of two gradients that are the same, in fp32 and fp64
NEAR_16_BIT = 3e-2


@dataclasses.dataclass
class Verified:
    """layers: {name of the weight: module}. counting: which of `weights_of` a batch says how much
    each example counts in its loss; None where the loss gives one number an example.
    """

    layers: dict[str, nn.Module]
    counting: int | None

    def __contains__(self, name: str) -> bool:
        return name in self.layers

    def weights(self, batch: Any) -> torch.Tensor:
        """[examples]: what each counts in the loss of the batch."""
        if self.counting is None:
            return torch.ones(number_of_examples(batch), dtype=torch.float64)
        found = weights_of(batch)
        if self.counting >= len(found):
            raise ValueError(
                "batches: the first has labels for every position, and another has not"
            )
        return found[self.counting]


def verified(score: Score, job: Job, layers: dict[str, nn.Module]) -> Verified:
    """Those of `layers` that give the same gradient in both ways."""
    if not layers:
        return Verified({}, 0)
    if score.per == "example" and _mixes_examples(job.model):
        return Verified({}, 0)
    trial = _Trial(score, job, layers)
    first = untouched(job.model, lambda saved: job.batches.first())
    if first is None:
        return Verified({}, 0)
    if score.per == "batch":
        plain = trial.plain(first)
        return Verified(trial.alike(plain, trial.factors(first, None), 1.0), None)
    return _by_example(trial, first, layers)


def _by_example(trial: "_Trial", batch: Any, layers: dict[str, nn.Module]) -> Verified:
    countings = weights_of(batch)
    number = _most_telling(countings)
    plain = trial.plain(example(batch, number))
    taken = trial.factors(batch, number)
    if trial.is_by_example:
        return Verified(trial.alike(plain, taken, 1.0), None)
    found = []
    for counting, weights in enumerate(countings):
        alike = trial.alike(plain, taken, float(weights[number]))
        found.append(Verified(alike, counting))
    most = max(found, key=lambda one: len(one.layers))
    rivals = [one.counting for one in found if one.layers and one is not most]
    same = [torch.equal(countings[most.counting], countings[rival]) for rival in rivals]
    return most if all(same) else Verified({}, 0)


def _most_telling(countings: list[torch.Tensor]) -> int:
    """The example on whose weight the ways to count differ most, relative to it."""
    stacked = torch.stack(countings)
    least = stacked.amin(0)
    spread = (stacked.amax(0) - least) / stacked.mean(0).clamp(min=1e-30)
    spread[least == 0] = -1.0
    return int(spread.argmax())


class _Trial:
    """Gradients of one batch, by their fingerprints."""

    def __init__(self, score: Score, job: Job, layers: dict[str, nn.Module]):
        self._score, self._job, self._layers = score, job, layers
        self._probes = {name: Probe(job.shape(name)) for name in layers}
        self.is_by_example = False  # whether the loss gave one number an example

    def plain(self, batch: Any) -> dict[str, list[torch.Tensor]]:
        """What autograd gives."""
        return self._tried(batch, self._listen)

    def factors(self, batch: Any, number: int | None) -> dict[str, list[torch.Tensor]]:
        """What the layers' factors give, of the example `number` or of all."""

        def prepare(saved: Untouched, found: dict) -> None:
            saved.stand_ins({})
            capture(self._layers, functools.partial(self._take, found, number))

        return self._tried(batch, prepare)

    def _listen(self, saved: Untouched, found: dict) -> None:
        weights = {name: self._job.weights[name] for name in self._layers}
        for name, parameter in saved.stand_ins(weights).items():
            hook = functools.partial(self._take_gradient, found, name)
            saved.also(parameter.register_post_accumulate_grad_hook(hook).remove)

    def _tried(self, batch: Any, prepare: Callable) -> dict[str, list[torch.Tensor]]:
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self._layers}

        def run(saved: Untouched) -> None:
            if self._score.per == "example":
                self._job.model.eval()  # dropout would draw otherwise for one than for all
            if self._score.of_magnitudes:
                saved.take_magnitudes()
            prepare(saved, found)
            loss = self._loss(batch)
            self.is_by_example = loss.dim() == 1 and loss.numel() > 1
            loss.sum().backward()

        untouched(self._job.model, run)
        return found

    def _loss(self, batch: Any) -> torch.Tensor:
        if self._score.objectives is None:
            return self._job.loss(self._job.model, batch)
        return next(iter(self._score.objectives(self._job.model, batch, self._job.seed)))

    def _take_gradient(self, found: dict, name: str, parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        matrix = gradient.reshape(self._job.shape(name))
        found[name].append(self._probes[name].of(matrix))

    def _take(
        self,
        found: dict,
        number: int | None,
        name: str,
        input: torch.Tensor,
        grad_output: torch.Tensor,
    ) -> None:
        factors = Factors(self._layers[name], input, grad_output)
        if number is None:
            product = factors.of_batch()
        elif number < factors.first_size:
            product = factors.of_example(number, 1.0)
        else:
            return
        found[name].append(product.fingerprint(self._probes[name]))

    def alike(
        self, plain: dict[str, list], taken: dict[str, list], weight: float
    ) -> dict[str, nn.Module]:
        """The layers with one gradient each way, the second `weight` times the first."""
        found = {}
        for name, layer in self._layers.items():
            if len(plain[name]) != 1 or len(taken[name]) != 1:
                continue
            wanted = plain[name][0] * weight
            is_wide = layer.weight.dtype in (torch.float32, torch.float64)
            near = NEAR if is_wide and not torch.is_autocast_enabled() else NEAR_16_BIT
            if (taken[name][0] - wanted).norm() <= near * wanted.norm():
                found[name] = layer
        return found


def _mixes_examples(model: nn.Module) -> bool:
    """Whether one example's loss depends on the others: batch norm in training."""
    norms = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
    return any(isinstance(module, norms) and module.training for module in model.modules())
