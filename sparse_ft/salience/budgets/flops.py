"""Flops: whole tensors, by what the backward of those that train costs (GreenTrainer)."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ...annotations import AnyModule
from ...matrices import CONVOLUTIONS
from ...nn.linear import is_conv1d
from ...plan import ALL
from ..scores.outputs import outputs_of
from ..untouched import Untouched, untouched
from .knapsack import Step, most_valuable

if TYPE_CHECKING:
    from ..choosing import Chooser
    from ..job import Job


class Layer(NamedTuple):
    """A linear layer or convolution: the name of its weight, and the FLOPs of its forward.

    The gradient of its weight takes as many, that of its input too.
    """

    weight: str
    flops: int


@dataclasses.dataclass(frozen=True)
class Flops:
    """The tensors worth the most whose backward takes at most `share` of that of them all.

    A tensor's cost is the gradient of its weight; to reach one, the gradient passes through every
    linear layer and convolution that runs later. They are taken as a chain, in the order in which
    their forwards run on the first batch; what has no weight (attention's own products, norms)
    is not counted. The choice is the best there is: `most_valuable`. Needs `batches` and targets
    that are weights of linear layers or convolutions. Raises ValueError for another share.
    """

    share: float

    structure = "tensors"  # what it chooses, where `select` is told no other

    def __post_init__(self) -> None:
        if not (isinstance(self.share, (int, float)) and 0 < self.share <= 1):
            raise ValueError(f"share: expected a number in (0, 1], got {self.share!r}")

    def choose(self, chooser: "Chooser") -> dict[str, str]:
        """{name: "all"} of the tensors that train."""
        job = chooser.job
        if job.structure.kind != self.structure:
            raise ValueError(
                f"structure: {self!r} chooses whole tensors, got {job.structure.kind!r}; pass"
                " structure='tensors'"
            )
        if job.batches is None:
            raise ValueError(f"batches: {self!r} needs one, to see what runs after what, got None")
        layers = _layers_run(job)
        values = {name: float(score) for name, score in chooser.worths()}
        missing = values.keys() - {layer.weight for layer in layers}
        if missing:
            raise ValueError(
                f"targets: {sorted(missing)[0]!r} is of no linear layer or convolution that the"
                f" first batch reaches, so {self!r} does not know its cost; leave it out"
            )
        steps = _steps(layers, values)
        total = sum(step.own + step.passing for step in steps)
        chosen = most_valuable(steps, int(self.share * total))
        if not chosen:
            raise ValueError(
                f"budget: {self!r} is less than the backward of any tensor of some value takes;"
                " take a larger share"
            )
        names = [layer.weight for layer in reversed(layers) if layer.weight in values]
        return {name: ALL for name in values if name in {names[n] for n in chosen}}


def _steps(layers: list[Layer], values: dict[str, float]) -> list[Step]:
    """The targets from the loss down. layers: in the order they run."""
    steps = []
    passing = 0
    for layer in reversed(layers):
        if layer.weight in values:
            steps.append(Step(values[layer.weight], layer.flops, passing))
            passing = 0
        passing += layer.flops
    return steps


def _layers_run(job: "Job") -> list[Layer]:
    """All linear layers and convolutions, in the order in which they run on the first batch."""
    found: dict[str, int] = {}

    def see(name: str, module: AnyModule, inputs: tuple, output: torch.Tensor) -> None:
        weight = module.weight
        features = weight.size(1) if is_conv1d(type(module)) else weight.size(0)
        positions = output.numel() // features
        if getattr(module, "transposed", False):
            positions = inputs[0].numel() // weight.size(0)
        found[name] = found.get(name, 0) + 2 * positions * weight.numel()

    def run(saved: Untouched) -> None:
        for path, module in job.model.named_modules():
            known = isinstance(module, (nn.Linear, *CONVOLUTIONS)) or is_conv1d(type(module))
            if known:
                hook = functools.partial(see, f"{path}.weight".lstrip("."))
                saved.also(module.register_forward_hook(hook).remove)
        with torch.no_grad():
            _forward(job, job.known_batches.first())

    untouched(job.model, run)
    return [Layer(name, flops) for name, flops in found.items()]


def _forward(job: "Job", batch: Any) -> None:
    if job.given_loss is None:
        outputs_of(job.model, batch)
    else:
        job.given_loss(job.model, batch)
