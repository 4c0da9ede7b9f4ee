"""Runs of transformers' Trainer with SparseCallback; as a program, runs that are killed.

`python small_runs.py FOLDER SECONDS …`: for each number a run in FOLDER/SECONDS, in a fork of its
own, which SIGKILL ends so long after its first checkpoint.
"""

import os
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
    whole = [path.parent for path in found if path.stat().st_size]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


class Slower(TrainerCallback):
    """Steps of a fast machine take long enough to be killed among them."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        time.sleep(0.03)


def killed(folder: Path, seconds: float) -> None:
    """A run that SIGKILL ends some time after its first checkpoint, and not after its last step."""
    child = os.fork()
    if not child:
        model = converted("columns", torch.bfloat16)
        run = trainer(model, folder, LONG, save_steps=EVERY)
        run.add_callback(Slower())
        run.train()
        os._exit(0)
    try:
        deadline = time.monotonic() + 240
        while not finished_checkpoints(folder):
            assert has_not_ended(child) and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(seconds)
        assert has_not_ended(child), "it ended before it could be killed"
    finally:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def has_not_ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG) == (0, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seconds in sys.argv[2:]:
        killed(Path(sys.argv[1], seconds), float(seconds))
