"""A network and data that every page here can have at once: put your own in their place."""

import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """Four blocks with dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + self.drop(torch.tanh(block(x)))
        return self.head(x)


def model() -> Net:
    torch.manual_seed(0)
    return Net()


def loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels)


def batches(number: int, seed: int = 0) -> list[Batch]:
    """Of a task that one hidden layer can solve; other seeds draw other examples of it."""
    draw = torch.Generator().manual_seed(99)
    first, second = (torch.randn(16, size, generator=draw) for size in (16, 3))
    draw.manual_seed(seed)
    inputs = torch.randn(number, 32, 16, generator=draw)
    return [(x, (torch.tanh(x @ first) @ second).argmax(1)) for x in inputs]


@torch.no_grad()
def accuracy(model: nn.Module, batches: list[Batch]) -> float:
    model.eval()
    right = [(model(x).argmax(1) == y).float().mean() for x, y in batches]
    model.train()
    return float(torch.stack(right).mean())
