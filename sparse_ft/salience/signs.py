"""Signs: of a parameter whose sizes are wanted for a while, in a bit each."""

import torch
import torch.nn.functional as F
from torch import nn

STRIP = 1 << 20  # numbers that are looked at together; a multiple of 8


class Signs:
    """The signs of a parameter's numbers, as they are when this is made."""

    def __init__(self, parameter: nn.Parameter):
        self._parameter = parameter
        self._packed = [_packed(strip) for strip in _strips(parameter)]

    def restore(self) -> None:
        """Give the numbers their signs again; to do so twice is as good as once."""
        for strip, packed in zip(_strips(self._parameter), self._packed):
            bits = (packed[:, None] >> _places(packed.device)) & 1
            negative = bits.reshape(-1)[: strip.numel()].bool()
            sizes = strip.abs()
            strip.copy_(torch.where(negative.view(strip.shape), -sizes, sizes))


def _strips(parameter: nn.Parameter) -> tuple[torch.Tensor, ...]:
    """The numbers, whatever order they lie in memory in, some at a time; views of them."""
    data = parameter.data
    if data.is_contiguous():
        return data.view(-1).split(STRIP)
    return tuple(data[number] for number in range(len(data))) if data.dim() else (data,)


def _packed(numbers: torch.Tensor) -> torch.Tensor:
    """uint8: the signs of eight numbers in each."""
    negative = torch.signbit(numbers).reshape(-1)
    bits = F.pad(negative, (0, -negative.numel() % 8)).view(-1, 8)
    return (bits.to(torch.uint8) << _places(bits.device)).sum(1, dtype=torch.uint8)


def _places(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
