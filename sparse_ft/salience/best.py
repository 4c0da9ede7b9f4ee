"""best: the units of one weight with the highest scores; a seed decides between equal ones."""

import torch

from . import threshold
from .lots import drawn


def best(score: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """int64 [count], ascending: where the `count` largest numbers of `score` [units] are.

    Of equal ones at the border some are drawn by `seed`, the same on every device and rank.
    """
    if count <= 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    if count >= score.numel():
        return torch.arange(score.numel(), device=score.device)
    least = threshold.kth_largest(score, count)
    above = (score > least).nonzero().squeeze(1)
    equal = (score == least).nonzero().squeeze(1)
    missing = count - above.numel()
    if missing < equal.numel():
        equal = equal[drawn(equal.numel(), missing, seed).to(equal.device)]
    return torch.cat((above, equal)).sort().values


def best_per_row(score: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """int64 [rows * count], ascending flat positions: the `count` largest of each row of `score`
    [rows, columns].
    """
    rows, columns = score.shape
    if count >= columns:
        return torch.arange(rows * columns, device=score.device)
    least = score.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    above = score > least
    missing = count - above.sum(1, keepdim=True)
    equal = score == least
    if (equal.sum(1, keepdim=True) != missing).any():
        generator = torch.Generator().manual_seed(seed)
        lots = torch.rand(score.shape, generator=generator, dtype=torch.float32, device="cpu")
        lots = lots.to(score.device).masked_fill_(~equal, 2.0)
        place = lots.argsort(dim=1, stable=True).argsort(dim=1)
        equal &= place < missing
    return (above | equal).reshape(-1).nonzero().squeeze(1)
