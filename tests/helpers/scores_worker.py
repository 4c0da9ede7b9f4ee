"""One process of a run whose ranks score by their own batches.

`python scores_worker.py RANK WORLD FOLDER`; leaves FOLDER/RANK.pt.
"""

import sys
from pathlib import Path

import torch
from helpers import ranks
from torch import nn

import sparse_ft as sft

CHOICES = {
    "gradient, globally": {"score": "gradient", "scope": "global", "structure": "entries"},
    "sums of rows": {"score": "gradient_abs", "structure": "rows"},
    "sizes of sums": {"score": "gradient", "structure": "columns", "combine": "abs_of_sum"},
    "fisher": {"score": "fisher", "structure": "entries"},
    "taylor in passes": {"score": "taylor", "structure": "entries", "accumulate": "passes"},
    "on the CPU": {"score": "saliency", "structure": "entries", "accumulate": "cpu"},
    "sensitivity": {"score": "sensitivity", "structure": "entries"},
    "synflow": {"score": "synflow", "structure": "entries"},
    "grasp": {"score": "grasp", "structure": "entries"},
    "activation": {"score": "activation", "structure": "columns"},
    "three lines": {
        "score": sft.Score(update=lambda acc, W, g: acc + (W * g).abs()),
        "structure": "entries",
    },
    "share": {"score": "taylor", "budget": sft.Share(0.5), "density": None, "scope": "global"},
    "Flops": {"score": "taylor", "budget": sft.Flops(0.5), "density": None},
}


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3)
    )
    return model.double()


def share(rank: int) -> list[torch.Tensor]:
    """This rank's batches: one more on each further rank."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(16, 12, generator=generator, dtype=torch.float64) for _ in range(rank + 1)]


def choose(batches: list[torch.Tensor], **settings) -> dict:
    plan = sft.select(
        net(),
        **{"density": 0.2, **settings},
        targets="*.weight",
        batches=batches,
        loss=lambda model, batch: model(batch).pow(2).mean(),
    )
    return {name: what if what == "all" else what.index for name, what in plan.items()}


def ties(rank: int) -> dict:
    """All scores are equal: the seed decides."""
    model = net()
    for parameter in model.parameters():
        parameter.data.zero_()
    plan = sft.select(
        model,
        density=0.3,
        structure="entries",
        score="gradient",
        targets="0.weight",
        batches=share(rank),
        loss=lambda model, batch: model(batch).pow(2).mean(),
    )
    return {name: selection.index for name, selection in plan.items()}


def fails_in_the_second_pass(rank: int) -> str:
    count = []

    def loss(model, batch):
        count.append(1)
        if rank == 1 and len(count) > 2:
            raise ArithmeticError("of rank 1")
        return model(batch).pow(2).mean()

    try:
        sft.select(
            net(), density=0.1, score="taylor", accumulate="passes", targets="*.weight",
            batches=share(rank), loss=loss,
        )  # fmt: skip
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(rank: int, world: int, folder: Path) -> None:
    ranks.join(rank, world, folder)
    found = {label: choose(share(rank), **settings) for label, settings in CHOICES.items()}
    found["ties"] = ties(rank)
    found["second pass"] = fails_in_the_second_pass(rank)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
