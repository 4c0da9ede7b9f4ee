"""Sums in fp64 of tensors in fp32, without a copy of them in fp64."""

import torch

STRIP = 1 << 20  # numbers that are converted together


def total(numbers: torch.Tensor) -> float:
    """The sum of a 1-D tensor."""
    return sum(float(strip.sum(dtype=torch.float64)) for strip in numbers.split(STRIP))


def total_of_sizes(numbers: torch.Tensor) -> float:
    """The sum of the numbers without their signs."""
    return sum(float(strip.abs().sum(dtype=torch.float64)) for strip in numbers.split(STRIP))


def total_of_squares(numbers: torch.Tensor) -> float:
    """The sum of the squares."""
    return sum(float(strip.double().square().sum()) for strip in numbers.split(STRIP))
