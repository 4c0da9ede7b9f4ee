"""Selective adapters of PEFT on the tiny Llama: made, trained, and their base looked at."""

from collections.abc import Callable
from typing import Any

import peft
import torch
from helpers import llama
from torch import nn

from sparse_ft.peft import SelectiveConfig

RATE = 1e-2
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def config(structure: str = "columns", density: float = 0.3, **more: Any) -> SelectiveConfig:
    defaults = {"score": "magnitude", "block_size": (10, 7), "target_modules": list(TARGETS)}
    return SelectiveConfig(structure=structure, density=density, **{**defaults, **more})


def adapted(structure: str = "columns", dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    return peft.get_peft_model(llama.tiny_llama(dtype), config(structure, **more))


def two_adapters() -> Any:
    """Adapters "default" and "other", trained apart, on overlapping entries."""
    model = adapted()
    train(model, 4)
    model.add_adapter("other", config("rows"))
    model.set_adapter("other")
    train(model, 4)
    return model


def assert_is_base(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """The weights of `model`, adapters aside, are those that it began with, bit for bit."""
    want = dict(llama.tiny_llama(dtype).named_parameters())
    got = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): p
        for name, p in model.named_parameters()
        if "selective" not in name
    }
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def optimizer_of(model: nn.Module, make: Callable = torch.optim.AdamW) -> torch.optim.Optimizer:
    return make([p for p in model.parameters() if p.requires_grad], lr=RATE)


def train(
    model: nn.Module,
    steps: int,
    make: Callable = torch.optim.AdamW,
    forward: Callable | None = None,
) -> list[float]:
    """Losses of a few steps; forward: what is called instead of the model."""
    optimizer = optimizer_of(model, make)
    losses = []
    for tokens in llama.batches(steps):
        loss = llama.loss_of(model if forward is None else forward, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(next(llama.batches(1, seed=9))).logits


def values_of(model: nn.Module, adapter: str = "default") -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if f".{adapter}." in n}
