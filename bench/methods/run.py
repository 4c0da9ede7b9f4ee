"""One run: load, warm the head, choose, train, evaluate. A function for a process of its own."""

import statistics
import time

import torch

from bench import machine
from bench.memory import (
    optimizer_bytes,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
    return_freed_blocks,
    saved_bytes,
    settle,
)
from bench.methods.methods import SCORE_BATCHES, methods_of, prepare
from bench.methods.rows import BYTES, RUN, Row
from bench.methods.tasks import TASKS

CLIP = 1.0  # gradient norm
HEAD_LR = 1e-1  # of the head alone
WARM_UP = 0.1  # share of the steps


def schedule_of(optimizer, steps):
    """Linear warm-up, then linear decay to zero."""
    warm = max(1, round(WARM_UP * steps))
    decay = max(1, steps - warm)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / decay))
    )


def train(model, optimizer, process, batches):
    """Seconds of each step."""
    schedule = schedule_of(optimizer, len(batches))
    seconds = []
    for batch in batches:
        begin = time.perf_counter()
        model(**batch).loss.backward()
        # what trains may change from step to step
        trained = [p for p in model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
        if process is not None:
            process.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    return seconds


def warm_head(task, model, seed):
    """Train the head alone for a few steps: a fresh one distorts what gradients say of the rest.

    The same for every method of a seed.
    """
    steps = task.setting.head_steps
    names = [pattern.removesuffix("*") for pattern in task.head]
    if not steps or not names:
        return
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(names)))
    head = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(seed)
    train(model, torch.optim.AdamW(head, lr=HEAD_LR), None, task.batches(seed + 1000, steps))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])


def run(task_name, setting, method_name, lr, seed, threads):
    """The row of one training."""
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    task = TASKS[task_name](setting)
    method = methods_of(task_name, setting.steps)[method_name]
    model = task.model(seed)
    before = task.second(model)
    warm_head(task, model, seed)
    batches = task.batches(seed)
    choosing = time.perf_counter()
    torch.manual_seed(seed)
    model, optimizer, process = prepare(
        model, method, setting.density, batches[:SCORE_BATCHES], lr, seed, task.head
    )
    choosing = time.perf_counter() - choosing
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    torch.manual_seed(seed)  # the same dropout for each method, whatever choosing drew
    seconds = train(model, optimizer, process, batches)
    validation, test = task.scores(model)
    return Row(
        task=task_name,
        setting=str(setting),
        kind=RUN,
        method=method_name,
        lr=lr,
        seed=seed,
        validation=validation,
        test=test,
        kept=task.second(model) / before if before else float("nan"),
        trainable=trainable,
        seconds_per_step=statistics.median(seconds),
        choosing_seconds=choosing,
        wall_seconds=time.perf_counter() - begin,
        machine=f"{machine.cpu_model()}, {threads} threads, commit {machine.commit()}",
    )


def memory(task_name, setting, method_name, lr, seed, threads):
    """The row of a method's bytes: two steps on the longest batch, freed blocks given back."""
    return_freed_blocks()
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    task = TASKS[task_name](setting)
    method = methods_of(task_name, setting.steps)[method_name]
    model = task.model(seed)
    for parameter in model.parameters():  # a mapped file is resident only where it was read
        parameter.data = parameter.data.clone()
    batches = task.batches(seed, SCORE_BATCHES)
    longest = max(batches, key=lambda batch: batch["input_ids"].numel())
    with torch.no_grad():
        model(**longest)  # libraries and their buffers are no cost of training
    settle()
    level = resident_bytes()
    model, optimizer, process = prepare(
        model, method, setting.density, batches, lr, seed, task.head
    )
    settle()
    reset_peak()
    train(model, optimizer, process, [longest] * 2)
    peak = peak_resident_bytes() - level
    return Row(
        task=task_name,
        setting=str(setting),
        kind=BYTES,
        method=method_name,
        lr=lr,
        seed=seed,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        optimizer_bytes=optimizer_bytes(optimizer),
        saved_bytes=saved_bytes(model, lambda: model(**longest).loss),
        peak_bytes=peak,
        wall_seconds=time.perf_counter() - begin,
        machine=f"{machine.cpu_model()}, {threads} threads, commit {machine.commit()}",
    )
