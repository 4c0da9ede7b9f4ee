"""Some steps of one method, measured."""

import statistics
import time
from typing import Any

import torch

from .config import Config
from .library import sparse_ft
from .training import made_to_train, prepare


def measured(config: Config, steps: int) -> dict[str, Any]:
    """A row of the table: its figures by name."""
    ready = prepare(config)
    model, _ = made_to_train(config, ready)
    model.train()
    sft = sparse_ft()
    found = sft.summary(model)
    batch = ready.encoder.longest(ready.train, config.training.batch_size)
    batch = batch.to(ready.arguments.device)
    optimizer = _optimizer(config, model, ready.chosen)
    seconds = [_step(model, optimizer, batch) for _ in range(steps)]
    state = [
        value.nbytes
        for held in optimizer.state.values()
        for value in held.values()
        if hasattr(value, "nbytes")
    ]
    name = "plan" if config.plan is not None else config.method
    return {
        "method": f"{name}, lean" if config.lean else name,
        "trainable": found.trainable,
        "share": found.trainable / found.total,
        "optimizer_bytes": sum(state),
        "saved_bytes": sft.memory.ledger(model, **batch).total,
        "seconds": statistics.median(seconds[1:]),
    }


def _optimizer(config: Config, model: Any, chosen: Any) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if chosen.plan is not None:
        return sparse_ft().SelectiveAdamW(trained, lr=config.rate, decay_to=chosen.decay_to)
    return torch.optim.AdamW(trained, lr=config.rate, fused=True)


def _step(model: Any, optimizer: Any, batch: Any) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin
