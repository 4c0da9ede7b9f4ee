"""Five fp32 steps of a tiny model on a device, in each way of training, against the same steps on
the CPU.

A way that computes something else on a GPU has no time that is worth a row.
"""

import dataclasses

import torch
from torch import nn

from bench import gpu_model, training
from bench.gpu_results import OK, RED, SKIPPED, Results, why_of
from bench.suite import Unavailable

STEPS = 5
LR = 1e-3
CPU = torch.device("cpu")
HOWS = ("", " lean", " in backward", " graph")
WAYS = (gpu_model.LORA, *(kind + how for kind in gpu_model.OURS for how in HOWS), "full")
# fp32 against fp64 on one CPU, the most of all ways: 1.1e-7 of the losses, 2.9e-5 of what moved.
LOSSES_APART = 1e-5
MOVED_APART = 1e-3


@dataclasses.dataclass(frozen=True)
class Run:
    """losses: of each step; moved: of all that trains, from its first value to its last."""

    losses: torch.Tensor
    moved: torch.Tensor

    def __sub__(self, other: "Run") -> tuple[float, float]:
        """How far apart two runs are: losses and what moved, relative in norm."""
        losses = (self.losses - other.losses).norm() / other.losses.norm()
        moved = (self.moved - other.moved).norm() / other.moved.norm().clamp(min=1e-30)
        return losses.item(), moved.item()


def steps(way: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Run:
    """The run of the tiny model, which is the same on every device to begin with."""
    *_, batch, tokens = gpu_model.MODELS["tiny"]
    model, optimizer = start(way, device, dtype)
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    labels = torch.randint(vocabulary, (batch, tokens), generator=generator).to(device)
    trained = training.trained(model)
    before = [p.detach().clone() for p in trained]
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=labels, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    moved = [(p.detach() - old).flatten() for p, old in zip(trained, before)]
    return Run(torch.stack(losses).cpu().double(), torch.cat(moved).cpu().double())


def start(
    way: str, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model that trains in this way, with the numbers that it has on the CPU."""
    model = gpu_model.base("tiny", CPU, dtype)
    torch.manual_seed(0)
    first, _ = gpu_model.prepare(way, gpu_model.base("tiny", CPU, dtype))
    model, optimizer = gpu_model.prepare(way, model.to(device))
    with torch.no_grad():  # adapters draw theirs on their own device
        for p, same in zip(training.trained(model), training.trained(first), strict=True):
            p.copy_(same)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(LR)
        else:
            group["lr"] = LR
    return model, optimizer


def check(way: str, device: torch.device, results: Results) -> None:
    """A row: whether five steps on the device are those on the CPU."""
    about = "five fp32 steps", way
    try:
        with gpu_model.unmasked():
            found, wanted = steps(way, device), steps(way, CPU)
        losses, moved = found - wanted
    except Unavailable as why:
        return results.add("model", *about, status=SKIPPED, note=str(why))
    except Exception as problem:  # noqa: BLE001 - the other ways go on
        return results.add("model", *about, status=RED, note=why_of(problem))
    is_same = losses <= LOSSES_APART and moved <= MOVED_APART and wanted.moved.norm() > 0
    note = f"losses apart by {losses:.1e}, what moved by {moved:.1e}"
    return results.add("model", *about, status=OK if is_same else RED, note=note)
