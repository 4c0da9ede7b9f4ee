"""One process of a run whose ranks choose by their own data.

`python plans_worker.py RANK WORLD FOLDER`; leaves FOLDER/RANK.pt.
"""

import sys
import time
import warnings
from pathlib import Path

import torch
from helpers import ranks
from torch import distributed, nn

import sparse_ft as sft
from sparse_ft import ranks as library


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3))


def share(rank):
    """This rank's batches: one more on each further rank."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(16, 12, generator=generator) for _ in range(rank + 1)]


def loss(model, batch):
    return model(batch).pow(2).mean()


def choose(rank, **keywords):
    settings = dict(
        density=0.2,
        structure="entries",
        score="gradient",
        targets="*.weight",
        loss=loss,
        batches=share(rank),
    )
    return sft.select(net(), **{**settings, **keywords})


def error_of(act):
    """What `act()` raised, as text; "" for nothing."""
    try:
        act()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def parts(model):
    """What tells whether a model is as it was."""
    return [type(m).__name__ for m in model.modules()], [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]


def indices(plan):
    return {name: selection.index for name, selection in plan.items()}


def train(rank):
    model = net()
    sft.convert(model, choose(rank))
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = sft.SelectiveAdamW(parallel.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        loss(parallel, share(rank)[0]).backward()
        optimizer.step()
    return sft.revert(model).state_dict()


def refused(rank, plan, **keywords):
    """(error, whether the model is as it was) of a convert that one rank or the ranks together do
    not agree to.
    """
    model = net()
    before = parts(model)
    error = error_of(lambda: sft.convert(model, plan, **keywords))
    return error, parts(model) == before


def experts_that_one_rank_does_not_reach(rank):
    def routed(model, batch):
        return model[2](batch[:, :10]).pow(2).mean() if rank else loss(model, batch)

    return indices(choose(rank, loss=routed))


def late(rank, folder):
    """Rank 1 comes when rank 0, which waits for it, has said so. Returns what this one has said."""
    sign, said = folder / "said", []

    def hear(message, *_):
        said.append(str(message))
        sign.touch()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = hear
        if rank:
            deadline = time.monotonic() + 60
            while not sign.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
        else:
            library.PATIENCE = 0.2
        sft.convert(net(), {"0.weight": sft.Rows([1])})
    library.PATIENCE = 30.0
    return said


def run(rank, folder):
    group = distributed.new_group([0])
    mine = sft.Rows([rank, 5])
    return {
        "trained": train(rank),
        "chosen": indices(choose(rank)),
        "chosen alone": indices(choose(rank, process_group=False)),
        "experts": experts_that_one_rank_does_not_reach(rank),
        "no batches on rank 0": indices(choose(rank, batches=share(rank)[:rank])),
        "no batches at all": error_of(lambda: choose(rank, batches=[])),
        "loss fails on rank 1": error_of(
            lambda: choose(rank, **({"loss": lambda m, b: 1 / 0} if rank else {}))
        ),
        "density fails on rank 1": error_of(
            lambda: choose(rank, **({"density": 20} if rank else {}))
        ),
        "other targets": error_of(lambda: choose(rank, targets=f"{2 * rank}.weight")),
        "one selects, one converts": error_of(
            lambda: sft.convert(net(), {"0.weight": mine}) if rank else choose(rank)
        ),
        "other plan": refused(rank, {"2.weight": sft.Rows([1]), "0.weight": mine}),
        "other names": refused(rank, {f"{2 * rank}.weight": sft.Rows([1])}),
        "other dtype": refused(
            rank, {"0.weight": sft.Rows([1])}, values_dtype=torch.float64 if rank else None
        ),
        "rank 1 fails": refused(rank, {"0.weight": sft.Rows([99 if rank else 1])}),
        "by itself": refused(rank, {"0.weight": mine}, process_group=False)[0],
        "only rank 0": "" if rank else refused(rank, {"0.weight": mine}, process_group=False)[0],
        "group of one": refused(rank, {"0.weight": mine}, process_group=group)[0]
        if rank == 0
        else "",
        "no group": error_of(lambda: sft.convert(net(), {"0.weight": mine}, process_group=3))
        if rank == 0
        else "",
        "late": late(rank, folder),
    }


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    ranks.join(rank, world, folder)
    torch.save(run(rank, folder), folder / f"{rank}.pt")
    distributed.destroy_process_group()
