"""One base in memory serves many tasks: each is a delta, put in for its requests and taken out.

    python examples/serve_deltas.py

The engine is a stand-in of an inference engine: it answers requests that come in any order. Every
answer has the bits of the model that was fine-tuned for its task, and in the end the base is what
it was. Deltas that change other entries may be in at once; these three overlap, so they take turns.
"""

import sys
import time

import torch
from torch import nn

import sparse_ft as sft

TASKS = {"add": 0, "shift": 3, "turn": 5}
WIDTH = 256


def load_base() -> nn.Module:
    """The model that all tasks share."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)).bfloat16()


def train(task: str) -> nn.Module:
    """A model fine-tuned for `task`, whose delta is written to `<task>.safetensors`."""
    model = load_base()
    draw = torch.Generator().manual_seed(TASKS[task])
    inputs = torch.randn(64, WIDTH, generator=draw).bfloat16()
    wanted = inputs.roll(TASKS[task], 1)
    plan = sft.select(
        model, density=0.02, structure="columns", batches=[inputs],
        loss=lambda model, batch: (model(batch) - wanted).float().square().mean(),
    )  # fmt: skip
    sft.convert(model, plan)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for _ in range(10):
        (model(inputs) - wanted).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sft.save_delta(model, f"{task}.safetensors")
    return model


class Engine:
    """Holds one base and as many deltas as there are tasks; one of them is in at a time."""

    def __init__(self, tasks: dict[str, int]) -> None:
        self.model = load_base()
        self.deltas = {task: sft.load_delta(f"{task}.safetensors") for task in tasks}
        self.task: str | None = None

    def switch(self, task: str | None) -> None:
        """Put the delta of `task` in; None: the base."""
        if self.task == task:
            return
        if self.task is not None:
            sft.remove(self.model)
        if task is not None:
            sft.apply(self.model, self.deltas[task])
        self.task = task

    @torch.no_grad()
    def answer(self, task: str | None, request: torch.Tensor) -> torch.Tensor:
        """What the model of `task` says to `request` [tokens, WIDTH]."""
        self.switch(task)
        return self.model(request)


def main() -> int:
    trained = {task: train(task) for task in TASKS}
    engine, base = Engine(TASKS), load_base()
    draw = torch.Generator().manual_seed(1)
    began, wrong = time.perf_counter(), 0
    requests = torch.randint(len(TASKS), (30,), generator=draw).tolist()
    for number in requests:
        task = list(TASKS)[number]
        request = torch.randn(4, WIDTH, generator=draw).bfloat16()
        with torch.no_grad():
            right = torch.equal(engine.answer(task, request), trained[task](request))
        wrong += not right
    spent = time.perf_counter() - began
    entries = sum(delta.entries for delta in engine.deltas.values())
    print(f"{len(requests)} requests to {len(TASKS)} tasks, {entries:,} entries in all deltas")
    print(f"{1000 * spent / len(requests):.2f} ms a request, with its check")
    engine.switch(None)
    same = all(map(torch.equal, engine.model.parameters(), base.parameters()))
    print("the base is what it was" if same else "the base has CHANGED")
    print("every answer has the bits of its own model" if not wrong else f"{wrong} answers DIFFER")
    return 0 if same and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
