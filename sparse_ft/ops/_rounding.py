"""Numbers of fp32 kept in 16 bits: rounded by chance, or as bfloat16 and a correction.

Plain PyTorch; csrc/rounding.h gives the same bits.
"""

import functools
from typing import Any

import torch

_WORD = 0xFFFFFFFF


def random_words(
    seed: Any, step: Any, count: int, stream: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """int64 [count] in [0, 2^32): one word for each entry of a tensor, from seed, step, entry and
    stream alone.

    seed: in [0, 2^48). stream: 0 values, 1 exp_avg, 2 exp_avg_sq. Twice lowbias32 (C. Wellons, Hash
    Prospector), with a key mixed by splitmix64's finaliser (Steele, Lea & Flood, Fast Splittable
    Pseudorandom Number Generators, 2014).
    """
    key = _mix64(_mix64(seed + 0x9E3779B97F4A7C15) + int(step))
    entry = torch.arange(count, dtype=torch.int64, device=device)
    second = (key >> 32) + (entry >> 32) * 0x85EBCA6B + stream * 0x9E3779B9
    return _mix32((_mix32((entry & _WORD) ^ (key & _WORD)) + second) & _WORD)


@functools.lru_cache(None)
def seed_of(seed: int, number: int) -> int:
    """A seed in [0, 2^48) for tensor number `number` of those that one seed (an integer modulo
    2^64) is for.
    """
    return _mix64(_mix64(seed) + number) >> 16


def _mix64(x: Any) -> Any:
    mask = (1 << 64) - 1
    x = ((x & mask) ^ (x & mask) >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


def _mix32(x: Any) -> Any:
    # The low half of a product is right even where it overflows.
    x = (x ^ x >> 16) * 0x7FEB352D & _WORD
    x = (x ^ x >> 15) * 0x846CA68B & _WORD
    return x ^ x >> 16


def round_by_chance(x: torch.Tensor, words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """fp32 `x` in bfloat16 or float16, up or down with the probability of what is dropped: right in
    expectation.

    words: int64, shaped as x, uniform in [0, 2^32). Numbers that dtype holds stay; those beyond its
    largest, inf and NaN go to the nearest. float16 below 2^-14: chances are multiples of 2^-24.
    """
    magnitude, info = x.abs(), torch.finfo(dtype)
    if dtype == torch.bfloat16:
        bits = x.view(torch.int32).to(torch.int64) & _WORD
        rounded = _float((bits + (words >> 16)) & 0xFFFF0000).to(dtype)
    else:
        bits = magnitude.view(torch.int32).to(torch.int64)
        normal = _float((bits + (words >> 19)) & ~0x1FFF)
        units = magnitude.clamp(max=2.0**-14) * 2.0**24
        up = ((words ^ _WORD) >> 8) + 1 <= (units - units.floor()) * 2.0**24
        rounded = (
            torch.where(magnitude < 2.0**-14, (units.floor() + up) * 2.0**-24, normal)
            .copysign(x)
            .to(dtype)
        )
    return torch.where(magnitude < info.max, rounded, x.to(dtype))


def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 as (bfloat16, int16): the nearest bfloat16, halves away from zero, and what is left of
    the bits.

    `join` gives back every bit of finite numbers and inf; NaN stays NaN. The bfloat16 part is inf
    beyond its largest number.
    """
    bits = x.view(torch.int32).to(torch.int64)
    high = (bits + 0x8000) >> 16
    low = torch.where(x.isnan(), 0, bits - (high << 16))
    return torch.where(
        x.isnan(), x.to(torch.bfloat16), _float((high << 16) & _WORD).to(torch.bfloat16)
    ), low.to(torch.int16)


def join(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The fp32 that `split` made (high, low) of."""
    return _float((high.float().view(torch.int32).to(torch.int64) + low) & _WORD)


def _float(bits: torch.Tensor) -> torch.Tensor:
    """int64 in [0, 2^32) as the fp32 of these bits."""
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)
