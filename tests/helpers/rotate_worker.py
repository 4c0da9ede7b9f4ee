"""One process of a run whose units rotate: `python rotate_worker.py RANK WORLD FOLDER`."""

import sys
import warnings
from pathlib import Path

import torch
from helpers import ranks
from helpers.residual_layers import ResidualLayers
from helpers.warned import messages_of
from torch.nn.parallel import DistributedDataParallel

import sparse_ft as sft

LAYERS, SIZE, STEPS, EVERY, BATCH = 5, 12, 8, 2, 4


def net():
    """Selected entries in the even layers, the others train whole."""
    model = ResidualLayers(LAYERS, SIZE).double()
    plan = {f"layers.{n}.weight": sft.Rows([1, 4, 7]) for n in range(0, LAYERS, 2)}
    whole = {f"layers.{n}.weight": "all" for n in range(1, LAYERS, 2)}
    sft.convert(model, {**plan, **whole, "head.weight": "all"}, process_group=False)
    return model


def train(model, inner, rank=0, world=1):
    """This rank's share of each batch; returns the labels of each step's units."""
    trained = [p for p in inner.parameters() if p.requires_grad]
    optimizer = sft.SelectiveAdamW(trained, 1e-2)
    schedule = sft.Rotate(2, EVERY, always="head.*", seed=3).attach(model, optimizer)
    seen = []
    for step in range(STEPS):
        seen.append(schedule.active)
        inputs = torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad()
        model(inputs[rank::world]).square().mean().backward()
        out_of_turn = [p for p in trained if not p.requires_grad]
        assert out_of_turn and all(p.grad is None for p in out_of_turn)
        optimizer.step()
        schedule.step()
    return seen


def refusal(parallel):
    try:
        sft.Rotate(2, EVERY).attach(parallel, None)
    except ValueError as error:
        return str(error)
    return "nothing raised"


def main(rank, world, folder):
    ranks.join(rank, world, folder)
    model = net()
    said = [
        refusal(DistributedDataParallel(model)),
        refusal(DistributedDataParallel(model, find_unused_parameters=True, static_graph=True)),
    ]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        sft.Rotate(2, EVERY).attach(net(), None)
    said.append(next(iter(messages_of(warned)), "nothing said"))
    seen = train(DistributedDataParallel(model, find_unused_parameters=True), model, rank, world)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = {"weights": weights, "said": said, "seen": seen}
    torch.save(result, Path(folder) / f"{rank}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
