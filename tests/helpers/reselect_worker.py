"""One process of a run that reselects: `python reselect_worker.py RANK WORLD FOLDER`."""

import sys
from pathlib import Path

import torch
from helpers import ranks
from helpers.reselected import net, plan_of
from torch.nn.parallel import DistributedDataParallel

import sparse_ft as sft

STEPS, EVERY, BATCH = 12, 4, 4


def inputs(step):
    draw = torch.Generator().manual_seed(step)
    tokens = torch.randint(12, (BATCH, 6), generator=draw)
    return tokens, torch.randn(BATCH, 9, 6, generator=draw).double()


def train(model, inner, rank=0, world=1):
    """This rank's share of each batch. inner: the model below DistributedDataParallel."""
    optimizer = sft.SelectiveAdamW(inner.parameters(), 1e-2)
    for step in range(STEPS):
        if step and step % EVERY == 0:
            sft.reselect(model, optimizer, plan_of(step))
        tokens, target = (part[rank::world] for part in inputs(step))
        optimizer.zero_grad()
        (model(tokens) - target).square().mean().backward()
        optimizer.step()
    return optimizer


def refusal(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "nothing raised"


def main(rank, world, folder):
    ranks.join(rank, world, folder)
    model = net(torch.float64)
    sft.convert(model, plan_of(0))
    parallel = DistributedDataParallel(model)
    optimizer = train(parallel, model, rank, world)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    said = [
        refusal(lambda: sft.reselect(parallel, optimizer, {"embed.weight": sft.Rows([0, 1])})),
        refusal(lambda: sft.reselect(parallel, optimizer, plan_of(100 + rank))),
    ]
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.save({"kept": kept, "after": after, "said": said}, Path(folder) / f"{rank}.pt")
    ranks.leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
