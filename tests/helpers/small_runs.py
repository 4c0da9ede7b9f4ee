"""Runs of transformers' Trainer with SparseCallback; as a program, runs that are killed.

`python small_runs.py FOLDER STEPS …`: for each number a run in FOLDER/STEPS, in a fork of its own,
which SIGKILL ends so many steps after its first checkpoint.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import torch
from helpers import llama
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import sparse_ft as sft
from sparse_ft.trainers import SparseCallback

LONG, EVERY = 60, 5  # steps of the run that is killed, and of its checkpoints
LONGEST = 400  # seconds that it may take


def converted(structure: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = llama.tiny_llama(dtype)
    sft.convert(model, llama.plan_of(structure))
    return model


def arguments(folder: Path, steps: int, **more: Any) -> TrainingArguments:
    given = {"save_strategy": "steps" if "save_steps" in more else "no", **more}
    return TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        lr_scheduler_kwargs={"num_cycles": 0.5},
        warmup_steps=1,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
        **given,
    )


def trainer(model: nn.Module, folder: Path, steps: int, make: Any = None, **more: Any) -> Trainer:
    """A run on 24 walks; make: an optimiser's class, None for the Trainer's own."""
    walks = [walk for tokens in llama.batches(6) for walk in tokens]
    rows = [{"input_ids": walk, "labels": walk} for walk in walks]
    optimizer = None
    if make is not None:
        optimizer = make([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return Trainer(
        model,
        arguments(folder, steps, **more),
        train_dataset=rows,
        eval_dataset=rows[:4],
        optimizers=(optimizer, None),
        callbacks=[SparseCallback()],
    )


def in_backward(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return sft.SelectiveAdamW(parameters, lr=lr, in_backward=True)


class Regression(nn.Module):
    """A net with a squared loss, called as the Trainer calls models."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.net(inputs)
        return {"loss": (output.mean(-1) - labels).float().square().mean(), "logits": output}


def regression(net: nn.Module, folder: Path, steps: int, **more: Any) -> Trainer:
    """A run on a plain module, which is converted itself."""
    weight = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, weight.size(-1), generator=generator).to(weight.dtype)
    rows = [{"inputs": row, "labels": row[:3].sum()} for row in inputs]

    class Loss(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            output = model(inputs["inputs"])
            return (output.mean(-1) - inputs["labels"]).float().square().mean()

    more.setdefault("remove_unused_columns", False)
    return Loss(
        net, arguments(folder, steps, **more), train_dataset=rows, callbacks=[SparseCallback()]
    )


def finished_checkpoints(folder: Path) -> list[Path]:
    """Those that the Trainer has finished, which it does with its own state; oldest first."""
    found = Path(folder).glob("checkpoint-*/trainer_state.json")
    whole = [path.parent for path in found if is_json(path)]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:  # it was not written to its end
        return False
    return True


class Told(TrainerCallback):
    """Tells the end of each step by a byte, and takes its time, so that a kill may come before the
    next one.
    """

    def __init__(self, pipe: int):
        self.pipe = pipe

    def on_step_end(self, *_: Any, **__: Any) -> None:
        os.write(self.pipe, b".")
        time.sleep(0.03)


def killed(folder: Path, steps: int) -> None:
    """A run that SIGKILL ends some time after so many steps after its first checkpoint; a moment
    of the clock alone may come when all is done.
    """
    told, telling = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        signal.alarm(LONGEST)  # ends it, whoever else has ended
        model = converted("columns", torch.bfloat16)
        run = trainer(model, folder, LONG, save_steps=EVERY)
        run.add_callback(Told(telling))
        run.train()
        signal.pause()  # to be killed
    os.close(telling)  # the child's end is the only one: if it dies, reading ends
    for _ in range(EVERY + steps):
        assert os.read(told, 1), "it ended before it could be killed"
    time.sleep(random.Random(steps).uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(told)
    assert finished_checkpoints(folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for steps in sys.argv[2:]:
        killed(Path(sys.argv[1], steps), int(steps))
