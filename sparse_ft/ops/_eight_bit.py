"""Moments in 8 bits, one absmax a block (Dettmers et al., 8-bit Optimizers via Block-wise
Quantization, 2022).

Plain PyTorch; csrc/quantize.h gives the same bits.
"""

import functools

import torch

BLOCK = 128  # entries, as they lie in memory


def num_blocks(count: int) -> int:
    """How many blocks `count` entries take."""
    return -(-count // BLOCK)


@functools.lru_cache(None)
def dynamic_map(signed: bool) -> torch.Tensor:
    """float32 [256], ascending: what the codes stand for, in units of their block's absmax.

    0, 1, and in each of seven decades below 1 the middles of equal parts, half as many as in the
    decade above; signed: the negatives of all these but 1 too, and half as many.
    """
    parts = [1 << i if signed else 2 << i for i in range(7)]
    positive = [
        (2 * n + 9 * (2 * j + 1)) / (20 * n * 10 ** (6 - i))
        for i, n in enumerate(parts)
        for j in range(n)
    ]
    negative = [-x for x in reversed(positive)] if signed else []
    return torch.tensor([*negative, 0.0, *positive, 1.0], dtype=torch.float64, device="cpu").float()


@functools.lru_cache(None)
def midpoints(signed: bool) -> torch.Tensor:
    """float32 [255]: where the nearest code changes.

    Unsigned, only 0 itself has the code of 0: an exp_avg_sq that became 0 would have its exp_avg
    divided by eps.
    """
    wide = dynamic_map(signed).double()
    between = ((wide[:-1] + wide[1:]) / 2).float()
    if not signed:
        between[0] = 0
    return between


def quantize(x: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes uint8 [count], absmax float32 [num_blocks]) of fp32 x [count]: the nearest codes, the
    lower one of two as near.

    Unsigned, only 0 has the code of 0. A NaN or inf makes the absmax of its block NaN or inf, and
    with that most of what `dequantize` makes of the block.
    """
    blocks = torch.nn.functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    highest = blocks.abs().view(torch.int32).amax(1)  # as bits: NaN is above all
    absmax = highest.clamp(max=0x7FC00000).view(torch.float32)
    ratio = blocks / torch.where(absmax > 0, absmax, 1)[:, None]
    codes = torch.bucketize(ratio, midpoints(signed).to(x.device))
    return codes.view(-1)[: x.numel()].to(torch.uint8), absmax


def dequantize(codes: torch.Tensor, absmax: torch.Tensor, signed: bool) -> torch.Tensor:
    """fp32 [count] from what `quantize` made."""
    return (
        dynamic_map(signed).to(codes.device)[codes.long()]
        * absmax.repeat_interleave(BLOCK)[: codes.numel()]
    )
