"""LoFiT and SparseGrad: what trains is no entry of a weight but a small delta on a layer."""

import itertools
from typing import Any

import torch
from torch import nn

from ...nn.linear import is_conv1d
from ...plan import Plan
from ...reparametrised import HeadOffsets, HeadScales, RotatedValues, parts_of, put, remove
from ...reparametrised.bases import Basis
from ...salience.best import best
from ...salience.losses import checked
from ...salience.untouched import untouched
from ...selection import Entries
from ...units import units
from ..parts import attention_and_rest
from ..process import Process
from ..recipe import recipe
from ..settings import check_count, check_lr, check_number
from ..values import NO_BATCH, cycled, several
from .full_run import Buffers


class Parts(Process):
    """Deltas on layers; what `lofit` and `sparsegrad` return.

    parts: {name of a layer: its delta}. `convert` puts them there; `sft.revert` merges them.
    """

    def __init__(self, parts: dict[str, Any]):
        super().__init__(Plan({}))
        self.parts = parts

    def convert(self, model: nn.Module, lean: bool = False) -> Any:
        """Put the deltas on their layers; what `also` named is converted first."""
        report = super().convert(model, lean) if self.plan else None
        put(model, self.parts)
        return report


@recipe(
    "lofit", "LoFiT, Yin et al. 2024, arXiv:2406.01563",
    {"heads": 16, "steps": 100, "lr": 5e-3, "penalty": 5e-4}, follows="paper",
)  # fmt: skip
def lofit(
    model: nn.Module,
    batches: Any,
    *,
    heads: int = 16,
    steps: int = 100,
    lr: float = 5e-3,
    penalty: float = 5e-4,
    new_bias: bool = True,
    loss: Any = None,
) -> Parts:
    """an offset vector for each of some attention heads, chosen by a factor each that trains first

    First factors of all heads train for `steps` steps with an L1 penalty, and the heads with the
    largest ‖a‖ are chosen, in all layers together; the factors are taken away again. The offset is
    added to what the head gives, before the output projection: under grouped queries no bias of v
    does the same. Merged it is a bias there (new_bias: where there is none, it gets one). Returns a
    process.
    """
    check_count("heads", heads)
    check_count("steps", steps)
    check_lr("lr", lr)
    check_number("penalty", penalty)
    turns, take = cycled(batches), checked(loss)
    first = next(turns)
    places = _output_projections(model, first, loss)
    there = sum(number for number, _ in places.values())
    if heads > there:
        raise ValueError(f"heads: expected at most {there}, all that the model has, got {heads}")
    turns = itertools.chain([first], turns)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    scales = {layer: HeadScales(range(number), size) for layer, (number, size) in places.items()}
    buffers = Buffers(model)
    put(model, scales)
    try:
        trained: list[Any] = [part.values for part, _ in parts_of(model)]
        optimizer = torch.optim.AdamW(trained, lr, weight_decay=0.0)
        for _ in range(steps):
            size = sum(values.abs().sum() for values in trained)
            (take(model, next(turns)) + penalty * size).backward()
            optimizer.step()
            optimizer.zero_grad()
        norms = {layer: scale.values.detach().norm(dim=1) for layer, scale in scales.items()}
    finally:
        buffers.restore()
        remove(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
    return Parts(_offsets(norms, places, heads, new_bias))


def _offsets(
    norms: dict[str, torch.Tensor], places: dict[str, tuple[int, int]], heads: int, new_bias: bool
) -> dict[str, Any]:
    """Offsets for the heads with the largest norms."""
    flat = torch.cat(list(norms.values()))
    chosen = set(best(flat, heads, seed=0).tolist())
    parts, first = {}, 0
    for layer, (number, size) in places.items():
        mine = [head for head in range(number) if first + head in chosen]
        if mine:
            parts[layer] = HeadOffsets(mine, size, new_bias=new_bias)
        first += number
    return parts


def _output_projections(model: nn.Module, batch: Any, loss: Any) -> dict[str, tuple[int, int]]:
    """{layer that reads heads: (how many heads, features of each)}."""
    found = {}
    for group in units(model, batch, loss).of("query_heads"):
        for share in group.shares:
            if share.takes:
                size = len(share.index) // group.count
                found[share.parameter.rpartition(".")[0]] = group.count, size
    if not found:
        raise ValueError("model: it has no attention heads that sft.units can tell")
    return found


@recipe(
    "sparsegrad", "SparseGrad, Chekalina et al. 2024, arXiv:2410.07383",
    {"density": 0.01, "seen": 4}, follows="paper",
)  # fmt: skip
def sparsegrad(
    model: nn.Module,
    batches: Any,
    *,
    density: float = 0.01,
    seen: int = 4,
    targets: Any = None,
    loss: Any = None,
) -> Parts:
    """of each feed-forward weight the coordinates where its gradients are large, in their own basis

    The basis: the eigenvectors of Σ g gᵀ and Σ gᵀ g over the gradients of `seen` batches; the
    coordinates: those with the largest Σ |g| there. targets: other weights of linear layers. One
    weight's gradients at a time. Returns a process.
    """
    names = attention_and_rest(model, targets)["rest"]
    if targets is not None:
        names = [name for group in attention_and_rest(model, targets).values() for name in group]
    if batches is None:
        raise ValueError("batches: the method looks at gradients, got None")
    if not names:
        raise ValueError("model: all its weights are attention's; name some in targets=")
    for name in names:
        if model.get_parameter(name).dim() != 2:
            raise ValueError(f"targets: {name!r} is not the weight of a linear layer; name others")
    check_count("seen", seen)
    kept = several(batches, seen)
    if not kept:
        raise ValueError(NO_BATCH)
    parts = {}
    for name in names:
        gradients = _gradients(model, name, kept, loss)
        basis = Basis.of_gradients(gradients)
        turned: Any = sum(basis.coordinates(each).abs() for each in gradients)
        count = max(1, round(density * turned.numel()))
        index = best(turned.flatten(), count, seed=0)
        parts[name.rpartition(".")[0]] = RotatedValues(Entries(index), basis)
    return Parts(parts)


def _gradients(model: nn.Module, name: str, batches: list[Any], loss: Any) -> list[torch.Tensor]:
    """[out, in] of each batch."""
    module: Any = model.get_submodule(name.rpartition(".")[0])
    take = checked(loss)

    def run(saved: Any) -> list[torch.Tensor]:
        stand_in = saved.stand_ins({name: module.weight})[name]
        return [torch.autograd.grad(take(model, batch), stand_in)[0] for batch in batches]

    found = untouched(model, run)
    return [each.T.contiguous() if is_conv1d(type(module)) else each for each in found]
