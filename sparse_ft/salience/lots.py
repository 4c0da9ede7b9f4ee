"""drawn: some of many, by a seed, the same on every machine and device."""

import torch


def drawn(number: int, count: int, seed: int) -> torch.Tensor:
    """`count` of the numbers from 0 to `number` - 1, drawn by `seed` on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(number, generator=generator, device="cpu")[:count]
