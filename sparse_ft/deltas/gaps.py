"""Sorted positions as the gaps between them, a byte or two each.

What the file of a delta keeps of single entries.

The gap before a position is the number of positions that it skips: `index[k] - index[k - 1] - 1`,
with -1 before the first one. A gap is written as bytes (uint8) or pairs of them (uint16). The
largest number of the dtype, 255 or 65535, is an escape: add it and go on. The dtype that makes the
shorter file is taken, tensor by tensor.

On gradient selections of a sentence encoder this takes 2.00 / 1.22 / 1.02 bytes an entry at a
density of 0.1 / 1 / 5 %; int32 takes 4, and the entropy of a random choice is 1.43 / 1.01 / 0.72.
"""

from collections.abc import Iterator

import numpy as np

ESCAPES: dict[np.dtype, int] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}
_AT_ONCE = 1 << 18  # numbers whose 64-bit intermediates are alive at once: 2 MB a tensor of them


def encode(index: np.ndarray) -> np.ndarray:
    """The gaps of `index` [n], sorted unique non-negative integers: [m] uint8 or uint16, m ≥ n."""
    sizes = {dtype: _numbers(index, escape) for dtype, escape in ESCAPES.items()}
    dtype = min(sizes, key=lambda each: sizes[each] * each.itemsize)
    escape = ESCAPES[dtype]
    gaps = np.full(sizes[dtype], escape, dtype)
    written = 0
    for part in _parts(index):
        escapes, rest = np.divmod(part, escape)
        ends = written + np.cumsum(escapes + 1)
        gaps[ends - 1] = rest
        written = int(ends[-1])
    return gaps


def _numbers(index: np.ndarray, escape: int) -> int:
    """How many numbers of a dtype with this `escape` the gaps of `index` take."""
    return sum(len(part) + int((part // escape).sum()) for part in _parts(index))


def _parts(index: np.ndarray) -> Iterator[np.ndarray]:
    """The gaps of `index` as they are, in int64, a part at a time."""
    for start in range(0, len(index), _AT_ONCE):
        part = index[start : start + _AT_ONCE].astype(np.int64)
        before = int(index[start - 1]) if start else -1
        yield np.diff(part, prepend=before) - 1


def decode(gaps: np.ndarray, count: int, bound: int) -> np.ndarray:
    """The `count` positions below `bound` that `gaps` stand for.

    [count] int32, or int64 where `bound` does not fit.

    Takes memory for the result and a few MB. Raises ValueError for gaps of any other number of
    positions, or of one that is not below `bound`.
    """
    escape = ESCAPES.get(gaps.dtype)
    if escape is None or gaps.ndim != 1:
        raise ValueError(f"gaps: expected [n] uint8 or uint16, got {gaps.shape} {gaps.dtype}")
    if len(gaps) and gaps[-1] == escape:
        raise ValueError("gaps: the last one is an escape, which nothing follows")
    index = np.empty(count, np.int32 if bound <= 1 << 31 else np.int64)
    reached, known = 0, 0  # the sum of the numbers so far; how many positions that gave
    for start in range(0, len(gaps), _AT_ONCE):
        part = gaps[start : start + _AT_ONCE].astype(np.int64)
        sums = np.cumsum(part) + reached
        ends = sums[part != escape]
        if known + len(ends) > count:
            raise ValueError(f"gaps: there are more than the {count} positions of its values")
        places = ends + np.arange(known, known + len(ends))
        if len(places) and places[-1] >= bound:
            raise ValueError(f"gaps: position {places[-1]} is out of range, expected below {bound}")
        index[known : known + len(ends)] = places
        reached, known = int(sums[-1]), known + len(ends)
    if known != count:
        raise ValueError(f"gaps: there are {known} positions, expected {count}, one a value")
    return index
