"""A small net with every structure, for runs on one process and on several."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft

WIDTH, TOKENS, CLASSES, BATCH, LENGTH = 12, 11, 7, 8, 5
PLAN = {
    "embed.weight": sft.Rows([0, 2, 5, 10]),
    "layers.0.norm.weight": sft.Entries([0, 7]),
    "layers.0.norm.bias": "all",
    "layers.0.attention.in_proj_weight": sft.Rows([0, 9, 20]),
    "layers.0.attention.out_proj.weight": sft.Entries([3, 17, 140]),
    "layers.0.up.weight": sft.Columns([1, 3, 8]),
    "layers.0.up.bias": "all",
    "layers.0.down.weight": sft.Rows([0, 1, 11]),
    "layers.1.up.weight": sft.Entries([0, 5, 13, 100, 203]),
    "layers.1.down.weight": sft.Blocks([[0, 1], [2, 5]], (5, 3)),
    "conv.weight": sft.Columns([0, 4, 35]),
    "head.weight": sft.Columns([2, 9]),
}
SELECTED = {name: what for name, what in PLAN.items() if what != "all"}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.up = nn.Linear(WIDTH, 17)
        self.down = nn.Linear(17, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.down(nn.functional.gelu(self.up(x)))


class Net(nn.Module):
    checkpointed = False

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.head(self.conv(x.transpose(1, 2)).transpose(1, 2).mean(1))


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same on every rank; each takes its part."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, TOKENS, (BATCH, LENGTH), generator=generator),
            torch.randint(0, CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(steps)
    ]


OPTIMIZERS: dict[str, Callable] = {
    "SelectiveAdamW": lambda ps: sft.SelectiveAdamW(ps, 1e-2, weight_decay=0.1),
    "AdamW": lambda ps: torch.optim.AdamW(ps, 1e-2, weight_decay=0.1),
    "to the origin": lambda ps: sft.SelectiveAdamW(ps, 1e-2, weight_decay=0.5, decay_to="origin"),
    "SGD": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
}


@dataclasses.dataclass
class Case:
    """One training. shard: what is done to the converted model; None: one process."""

    optimizer: str = "SelectiveAdamW"
    dtype: torch.dtype = torch.float32
    plan: dict[str, Any] = dataclasses.field(default_factory=lambda: PLAN)
    convert: dict[str, Any] = dataclasses.field(default_factory=dict)
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    checkpointed: bool = False
    accumulate: int = 1
    clip: float | None = None
    steps: int = 3
    shard: dict[str, Any] = dataclasses.field(default_factory=dict)
    exact: float = 1e-6  # how far from one process
    worlds: tuple[int, ...] = (2, 4)  # numbers of ranks that it is run on


def converted(case: Case) -> Net:
    model = net(case.dtype)
    model.checkpointed = case.checkpointed
    sft.convert(model, case.plan, **case.convert)
    return sft.scale_updates(model, case.factors) if case.factors else model


def shard(model: Net, **keywords: Any) -> Net:
    """Each layer a group of FSDP2's, and the rest one."""
    for layer in model.layers:
        fully_shard(layer, **keywords)
    return fully_shard(model, **keywords)


def part_of(batch: tuple, rank: int, world: int, number: int = 0, of: int = 1) -> tuple:
    """This rank's examples of micro-batch `number` of `of`."""
    size = BATCH // of
    each = size // world
    start = number * size + rank * each
    return tuple(tensor[start : start + each] for tensor in batch)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    case: Case,
    rank: int = 0,
    world: int = 1,
    first: int = 0,
    before_step: Callable[[int], None] = lambda step: None,
) -> list[torch.Tensor]:
    """The losses of this rank. first: the step to begin with."""
    losses = []
    for step, batch in enumerate(batches(case.steps)[first:], first):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for number in range(case.accumulate):
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(number == case.accumulate - 1)
            tokens, wanted = part_of(batch, rank, world, number, case.accumulate)
            loss = nn.functional.cross_entropy(model(tokens).float(), wanted)
            (loss / case.accumulate).backward()
            total += loss.detach() / case.accumulate
        if case.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        before_step(step)
        optimizer.step()
        losses.append(total)
    return losses
