"""Fingerprints of weights: 64 bits that tell one base model from another.

They can be had without entries that somebody has trained since.

The memory of a tensor is read as 64-bit words, the last one filled up with zeros. Its fingerprint
is Σ (low[i] + high[i] · K) · c[i] mod 2^64: low and high the halves of word i, K one odd number,
c[i] an odd number that looks random and depends on i alone. (Without K, a sign in the top bit would
count the same in every word.) It is the same on every device and for every order of summation.
An entry is some bits of one word, so a sum can leave entries out: what a trained model and its base
have in common is the fingerprint of the entries that did not train. It finds mistakes (another
model, another release of it), not forgeries.
"""

import functools
import hashlib
from collections.abc import Iterable

import numpy as np
import torch

from ..quantised.quantiser import plain_tensors

_ROW = 1 << 16  # words that share one factor; within them, coefficients come from a table
_ROWS_AT_ONCE = 2  # 1 MB of products, which fits a cache: 2 GB/s, with 16 half of that
_LOW, _K = (1 << 32) - 1, -0x61C8864680B583EB  # K: 2^64 / golden ratio, as a signed number
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: torch.Tensor) -> int:
    """The fingerprint of all entries of `tensor`, in [0, 2^64).

    0 for what holds no plain numbers (sparse, quantised by torch, complex); of a tensor that is
    made of others, theirs together.
    """
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(fingerprint(part) for part in plain_tensors(tensor)) % (1 << 64)
    if not _is_plain(tensor):
        return 0
    memory = bits_of(tensor.detach()).reshape(-1).view(torch.uint8)
    size = len(memory) // 8 * 8
    if memory.storage_offset() % 8:
        memory = memory.clone()
    end = torch.zeros(8, dtype=torch.uint8, device=memory.device)
    end[: len(memory) - size] = memory[size:]
    words = memory[:size].view(torch.int64)
    return (_sum(words, 0) + _sum(end.view(torch.int64), len(words))) % (1 << 64)


def _sum(words: torch.Tensor, first: int) -> int:
    """The sum over `words` [n] int64, of which the first one has number `first`."""
    table, total = _table(words.device), 0
    start = 0
    while start < len(words):
        row, column = divmod(first + start, _ROW)
        rows = min(_ROWS_AT_ONCE, (len(words) - start) // _ROW) if column == 0 else 0
        size = rows * _ROW or min(_ROW - column, len(words) - start)
        here = words[start : start + size].view(max(rows, 1), -1)
        factors = _factors(torch.arange(row, row + max(rows, 1), device=words.device))
        sums = (_spread(here) * table[column : column + here.size(1)]).sum(1)
        total += int((sums * factors).sum())
        start += size
    return total


def _spread(words: torch.Tensor) -> torch.Tensor:
    """low + high * K of each word; the halves share no bits, so this adds up over entries."""
    return (words & _LOW) + ((words >> 32) & _LOW) * _K


def fingerprint_of_entries(values: torch.Tensor, positions: torch.Tensor) -> int:
    """What entries at flat `positions` [n] add to the fingerprint of their tensor.

    values: [n], what they hold.
    """
    if not _is_plain(values):
        return 0
    size = values.element_size()
    table, total = _table(values.device), 0
    bits = bits_of(values.detach()).reshape(-1)
    for start in range(0, len(positions), _ROWS_AT_ONCE * _ROW):
        here = slice(start, start + _ROWS_AT_ONCE * _ROW)
        position = positions[here].long()
        word = position * size >> 3
        shift = (position * size & 7) * 8
        number = bits[here].long()
        if size < 8:
            number &= (1 << 8 * size) - 1
        coefficient = table[word & (_ROW - 1)] * _factors(word // _ROW)
        total += int((_spread(number << shift) * coefficient).sum())
    return total % (1 << 64)


def written(number: int) -> str:
    """A fingerprint as 16 hexadecimal digits."""
    return f"{number:016x}"


def line_of(name: str, shape: tuple[int, ...], dtype: torch.dtype, number: int) -> int:
    """What a parameter adds to the fingerprint of its model, in [0, 2^128)."""
    line = f"{name} {tuple(shape)} {dtype} {written(number)}"
    return int.from_bytes(hashlib.sha256(line.encode()).digest()[:16], "little")


def joint(lines: Iterable[int]) -> str:
    """The fingerprint of a model, of what `line_of` gave of its parameters: 32 hexadecimal digits.

    It is a sum as well: who knows the line of a parameter can leave it out (`without`).
    """
    return f"{sum(lines) % (1 << 128):032x}"


def without(fingerprint_of_model: str, lines: Iterable[int]) -> str:
    """What `joint` would have given without `lines`."""
    return joint([int(fingerprint_of_model, 16), *(-line for line in lines)])


def _is_plain(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        return False
    return not tensor.is_nested and tensor.device.type != "meta"


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The entries of `tensor` as integers of their own size, in their order.

    In its own memory where that is contiguous.
    """
    plain = tensor.resolve_neg().contiguous()
    return plain.view(_BITS[plain.element_size()])


@functools.cache
def _table(device: torch.device) -> torch.Tensor:
    """The coefficients of the words of one row: [_ROW] odd int64."""
    numbers = _mixed(np.arange(1, _ROW + 1, dtype=np.uint64)) | np.uint64(1)
    return torch.from_numpy(numbers.view(np.int64)).to(device)


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Numbers that look random, each of one of `numbers` (splitmix64, Steele et al. 2014)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _factors(rows: torch.Tensor) -> torch.Tensor:
    """The factor of each row, an odd int64: products that wrap around, as unsigned ones do."""
    mixed = (rows + 1) * _K
    mixed = (mixed ^ (mixed >> 29)) * -0x40A7B892E31B1A47
    return (mixed ^ (mixed >> 32)) | 1
