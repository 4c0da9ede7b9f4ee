"""One run: load, choose, train, evaluate; and one short pass for its bytes.

Together they fill a table row.
"""

import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

import torch
from tqdm import tqdm

from bench.memory import (
    optimizer_bytes,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
    return_freed_blocks,
    saved_bytes,
    settle,
)
from demo.data import collate, training_order
from demo.methods import SCORE_BATCHES, learning_rate, prepare, resolved
from demo.model import load_model

WARM_UP = 0.1  # share of the steps
CLIP = 1.0  # gradient norm
EVAL_BATCH = 64  # examples
# One process writes a bar: no semaphore to be left behind when it is ended.
tqdm.set_lock(threading.RLock())


@dataclass(frozen=True)
class Settings:
    steps: int
    batch_size: int = 32
    seed: int = 0
    lr: dict = field(default_factory=dict)  # {"" or kind or structure: rate}, over the tuned ones
    evaluate: str = "test"  # split: "test" or "validation"


def rate_of(method, table, overrides):
    for name in (method.structure or method.kind, method.kind, ""):
        if name in overrides:
            return overrides[name]
    return learning_rate(method, table)


def linear_schedule(optimizer, steps):
    """Linear warm-up over the first WARM_UP of the steps, then linear decay to zero."""
    warm = max(1, round(WARM_UP * steps))
    decay = max(1, steps - warm)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / decay))
    )


def train(model, optimizer, batches, label=None):
    """Train on the batches, with a progress bar if there is a label.

    Returns (seconds of each step, last loss).
    """
    schedule = linear_schedule(optimizer, len(batches))
    trained = [p for p in model.parameters() if p.requires_grad]
    seconds, loss = [], None
    quiet = not sys.stderr.isatty()  # a log file gets a line now and then, a terminal a moving bar
    name, pause = f"{label or '':<30}", 15 if quiet else 0.2
    with tqdm(batches, desc=name, unit="step", mininterval=pause, disable=not label) as bar:
        for batch in bar:
            begin = time.perf_counter()
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            seconds.append(time.perf_counter() - begin)
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return seconds, loss.item()


@torch.no_grad()
def accuracy(model, data, pad_id):
    """Share of examples classified rightly, in evaluation mode; sorted by length to pad little."""
    model.eval()
    order = sorted(range(len(data)), key=lambda i: len(data.tokens[i]))
    right = 0
    for start in range(0, len(order), EVAL_BATCH):
        batch = collate(data, order[start : start + EVAL_BATCH], pad_id)
        labels = batch.pop("labels")
        right += (model(**batch).logits.argmax(-1) == labels).sum().item()
    model.train()
    return right / len(order)


def batches_of(task, settings):
    """The training batches of a run, the same for every method."""
    order = training_order(len(task.train), settings.steps, settings.batch_size, settings.seed)
    return [collate(task.train, positions, task.pad_id) for positions in order]


def memory(task, method, settings):
    """The bytes of one method, in a process that returns freed blocks at once and trains on its
    longest batch only.
    """
    return_freed_blocks()
    batches = batches_of(task, settings)
    longest = max(batches, key=lambda batch: batch["input_ids"].numel())
    model = load_model(task, settings.seed)
    # A loaded weight is a mapped file that is resident only where it was read.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        # What a forward brings in, libraries and their buffers, is no cost of training.
        model(**longest)
    settle()
    level = resident_bytes()

    reset_peak()
    model, optimizer = prepare(
        model, resolved(model, method), batches[:SCORE_BATCHES], 1e-4, settings.seed
    )
    choosing_peak = peak_resident_bytes() - level
    settle()
    reset_peak()
    train(model, optimizer, [longest] * 2)
    peak = peak_resident_bytes() - level
    return {
        "optimizer_bytes": optimizer_bytes(optimizer),
        "saved_bytes": saved_bytes(model, lambda: model(**longest).loss),
        "peak_bytes": peak,
        "choosing_peak_bytes": choosing_peak,
    }


def run(task, method, settings):
    """One method trained and evaluated: accuracy in [0, 1], counts, seconds."""
    begin = time.perf_counter()
    batches = batches_of(task, settings)
    model = load_model(task, settings.seed)
    method = resolved(model, method)
    lr = rate_of(method, task.learning_rates, settings.lr)
    total = sum(p.numel() for p in model.parameters())
    choosing = time.perf_counter()
    model, optimizer = prepare(model, method, batches[:SCORE_BATCHES], lr, settings.seed)
    choosing = time.perf_counter() - choosing
    torch.manual_seed(settings.seed)  # the same dropout for each method, whatever choosing drew
    seconds, loss = train(model, optimizer, batches, method.label)
    return asdict(method) | {
        "label": method.label,
        "accuracy": accuracy(model, getattr(task, settings.evaluate), task.pad_id),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total": total,
        "seconds_per_step": statistics.median(seconds),
        "choosing_seconds": choosing,
        "lr": lr,
        "last_loss": loss,
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "wall_seconds": time.perf_counter() - begin,
    }
