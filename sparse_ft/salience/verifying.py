"""verified: of which linear layers the gradients of single examples can be had from one backward.

Found by trying: one example is run by itself and among the others, and the gradients are compared
by a few numbers of each. Layers fail whose first dimension is not the examples', and all do where
the loss weighs examples in a way that the labels do not tell; they take a backward an example.
"""

import dataclasses
import functools
from typing import Any

import torch
from torch import nn

from .capture import Factors, Probe, capture, refuse_strays
from .examples import example, number_of_examples, weights_of
from .job import Job
from .recompute import recompute
from .score import Score
from .untouched import Untouched, untouched

NEAR = 1e-3  # relative distance of two gradients that are the same, in fp32 and fp64
NEAR_16_BIT = 3e-2


@dataclasses.dataclass
class Verified:
    """layers: {name of the weight: module}.

    counting: which of `weights_of` a batch says how much each example counts in its loss; None
    where the loss gives one number an example.
    """

    layers: dict[str, nn.Module]
    counting: int | None = None

    def weights(self, batch: Any) -> torch.Tensor:
        """[examples]: what each counts in the loss of the batch."""
        if self.counting is None:
            return torch.ones(number_of_examples(batch), dtype=torch.float64, device="cpu")
        found = weights_of(batch)
        if self.counting >= len(found):
            raise ValueError("batches: the first has labels for every position, another has not")
        return found[self.counting]


def verified(score: Score, job: Job, layers: dict[str, nn.Module]) -> Verified:
    """Those of `layers` of which an example's gradient is the same in both ways."""
    if not layers or _mixes_examples(job.model):
        return Verified({})
    first = untouched(job.model, lambda saved: job.known_batches.first())
    if first is None:
        return Verified({})
    trial = _Trial(score, job, layers)
    countings = weights_of(first)
    # Labels that are drawn are drawn in order: by itself only the first example gets those that it
    # has among the others.
    number = _most_telling(countings) if score.objectives is None else 0
    alone = trial.run(example(first, number), None)
    among = trial.run(first, number)
    if trial.is_by_example:
        return Verified(trial.alike(alone, among, 1.0))
    found = []
    for counting, weights in enumerate(countings):
        found.append(Verified(trial.alike(alone, among, float(weights[number])), counting))
    best = max(range(len(found)), key=lambda counting: len(found[counting].layers))
    for rival, weights in zip(found, countings):
        if rival.layers and not torch.equal(weights, countings[best]):
            return Verified({})
    return found[best]


def _most_telling(countings: list[torch.Tensor]) -> int:
    """The example on whose weight the ways to count differ most, relative to it."""
    stacked = torch.stack(countings)
    least = stacked.amin(0)
    spread = (stacked.amax(0) - least) / stacked.mean(0).clamp(min=1e-30)
    spread[least == 0] = -1.0
    return int(spread.argmax())


class _Trial:
    """Gradients of one example, by their fingerprints."""

    def __init__(self, score: Score, job: Job, layers: dict[str, nn.Module]):
        self._score, self._job, self._layers = score, job, layers
        self._probes = {name: Probe(job.shape(name)) for name in layers}
        self._strays: set[str] = set()  # weights that are read past their module
        self.is_by_example = False  # whether the loss gave one number an example

    def run(self, batch: Any, number: int | None) -> dict[str, list[torch.Tensor]]:
        """{name: fingerprints} of the gradient of the example `number`, or of all that there is."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self._layers}

        def act(saved: Untouched) -> None:
            self._job.model.eval()  # dropout would draw otherwise for one than for all
            if self._score.of_magnitudes:
                saved.take_magnitudes()
            watched = () if self._job.is_converted else self._layers
            weights = {name: self._job.weights[name] for name in watched}
            if self._job.recompute:
                recompute(self._job.model, saved)
            refuse_strays(saved, weights, self._strays.add)
            capture(self._layers, functools.partial(self._take, found, number))
            loss = self._loss(batch)
            self.is_by_example = loss.dim() == 1 and loss.numel() > 1
            loss.sum().backward()

        untouched(self._job.model, act)
        return found

    def _loss(self, batch: Any) -> torch.Tensor:
        if self._score.objectives is None:
            return self._job.loss(self._job.model, batch)
        return next(iter(self._score.objectives(self._job.model, batch, self._job.seed)))

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

    def alike(self, alone: dict, among: dict, weight: float) -> dict[str, nn.Module]:
        """The layers with one gradient each way, the second `weight` times the first."""
        found = {}
        for name, layer in self._layers.items():
            if len(alone[name]) != 1 or len(among[name]) != 1 or name in self._strays:
                continue
            wanted = alone[name][0] * weight
            is_wide = layer.weight.dtype in (torch.float32, torch.float64)
            near = NEAR if is_wide and not torch.is_autocast_enabled() else NEAR_16_BIT
            if (among[name][0] - wanted).norm() <= near * wanted.norm():
                found[name] = layer
        return found


def _mixes_examples(model: nn.Module) -> bool:
    """Whether one example's loss depends on the others: batch norm in training."""
    norms = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
    return any(isinstance(module, norms) and module.training for module in model.modules())
