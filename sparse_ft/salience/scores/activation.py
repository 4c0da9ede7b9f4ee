"""activation: how strongly each input feature of a linear layer or convolution is driven."""

import dataclasses
import functools
from collections.abc import Iterator

import torch
from torch import nn

from ...annotations import AnyModule
from ...matrices import CONVOLUTIONS
from ...nn.linear import is_conv1d
from ..job import Job
from ..score import Matrix
from ..untouched import Untouched, untouched
from .outputs import outputs_of


@dataclasses.dataclass(frozen=True)
class Activation:
    """√E x², the root mean square of each input feature over the tokens of all batches, for every
    entry that reads it (SMT's channels, SCT, OWQ's diagonal, Wanda's norm). No backward is run.

    An input feature is a column of a linear layer, a row of transformers' Conv1D, and as many
    columns of a convolution as its kernel has places. Raises ValueError for a target of another
    module, or one that no batch reaches, by name.
    """

    name = "activation"
    needs_batches = True
    takes_quantised = True

    def source(self, job: Job) -> "ActivationSource":
        return ActivationSource(job)


class ActivationSource:
    """Scores of one run without gradients."""

    reduced = absolute = False

    def __init__(self, job: Job):
        self._job = job
        self._layers = _layers(job)
        self._held: dict[str, torch.Tensor] | None = None  # [features]
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = dict.fromkeys(self._layers, 0)

    def scores(self, last: bool = True) -> Iterator[tuple[str, Matrix]]:
        """(name, score) of every weight; a view that takes no memory."""
        if self._held is None:
            self._held = self._collected()
        for name, feature in self._held.items():
            yield name, self._spread(name, feature)

    def _collected(self) -> dict[str, torch.Tensor]:
        job = self._job
        job.ranks.begin()
        untouched(job.model, self._run)
        job.ranks.agree({name: f"{job.shape(name)} #" for name in self._layers})
        if job.ranks.size > 1:
            told = job.ranks.exchange(self._counts)
            self._counts = {name: sum(one[name] for one in told) for name in self._layers}
        dead = [name for name, count in self._counts.items() if not count]
        if len(dead) == len(self._counts):
            raise ValueError("batches: expected at least one for score='activation', got none that"
                             f" reached {dead[0]!r}")  # fmt: skip
        if dead:
            raise ValueError(f"targets: no batch reached {dead[0]!r}; name the others in targets=")
        found = {}
        for name in self._layers:
            total = job.ranks.sum_(self._sum_of(name))
            found[name] = (total / self._counts[name]).sqrt_()
        return found

    def _sum_of(self, name: str) -> torch.Tensor:
        """[features]: the sum of squares; zeros where this rank has none."""
        if name not in self._sums:
            weight = self._job.weights[name]
            is_double = weight.dtype == torch.float64
            wide = torch.float64 if is_double else torch.float32
            features = _features_of(self._layers[name])
            self._sums[name] = torch.zeros(features, dtype=wide, device=weight.device)
        return self._sums[name]

    def _run(self, saved: Untouched) -> None:
        for name, module in self._layers.items():
            hook = functools.partial(self._see, name)
            saved.also(module.register_forward_pre_hook(hook).remove)
        with torch.no_grad():
            for batch in self._job.followed("activations of batches"):
                if self._job.given_loss is None:
                    outputs_of(self._job.model, batch)
                else:
                    self._job.given_loss(self._job.model, batch)

    def _see(self, name: str, module: nn.Module, inputs: tuple) -> None:
        input = inputs[0].detach()
        feature = 1 if isinstance(module, CONVOLUTIONS) else input.dim() - 1
        if isinstance(module, CONVOLUTIONS) and input.dim() == len(module.kernel_size) + 1:
            feature = 0  # a picture without a batch
        total = self._sum_of(name)
        others = [dim for dim in range(input.dim()) if dim != feature]
        squares = torch.linalg.vector_norm(input, dim=others, dtype=total.dtype).square_()
        total.add_(squares)
        self._counts[name] += input.numel() // input.size(feature)

    def _spread(self, name: str, feature: torch.Tensor) -> Matrix:
        """[rows, columns]: to every entry what its input feature has."""
        module = self._layers[name]
        rows, columns = self._job.shape(name)
        if is_conv1d(type(module)):
            return feature[:, None].expand(rows, columns)
        if not isinstance(module, CONVOLUTIONS):
            return feature.expand(rows, columns)
        places = module.weight[0, 0].numel()
        if module.groups == 1:
            return feature.repeat_interleave(places).expand(rows, columns)
        by_group = feature.view(module.groups, -1).repeat_interleave(places, dim=1)
        return by_group.repeat_interleave(rows // module.groups, dim=0)


def activation() -> Activation:
    """See `Activation`."""
    return Activation()


def _features_of(module: AnyModule) -> int:
    if isinstance(module, CONVOLUTIONS):
        return module.in_channels
    return module.weight.size(0) if is_conv1d(type(module)) else module.in_features


def _layers(job: Job) -> dict[str, nn.Module]:
    """{name of the weight: its module}."""
    found = {}
    for name in job.weights:
        path, _, attribute = name.rpartition(".")
        module = job.model.get_submodule(path)
        known = isinstance(module, nn.Linear) or is_conv1d(type(module))
        plain_convolution = isinstance(module, CONVOLUTIONS) and not module.transposed
        if attribute != "weight" or not (known or plain_convolution):
            raise ValueError(
                f"targets: score='activation' knows the input features of linear layers and"
                f" convolutions, and {name!r} is of a {type(module).__name__}; leave it out"
            )
        found[name] = module
    return found
