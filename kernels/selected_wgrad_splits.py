"""Into how many parts the tokens of selected_wgrad's blocks are split.

Few blocks are few programs, and leave most of a device idle: each part of the tokens is a program
of its own then, and a second kernel adds up their sums. By arithmetic on one device, an H200, so
that every GPU sums in the same order; none of these numbers but the rates is measured yet.
"""

import functools
from typing import NamedTuple

PROCESSORS = 132
SHARED = 233472  # bytes of shared memory of a processor
MOST_RESIDENT = 4  # programs of a processor at a time, by their registers
PIPELINE = 3  # stages of BLOCK_T tokens, of which all but one are on their way
BLOCK_T = 64
# A second, FLOP or bytes: of the whole device, but for TAKE, what one processor takes from the
# second-level cache at most (64 bytes a clock).
MATH, CACHE, MEMORY, TAKE = 790e12, 5.5e12, 4.3e12, 112e9
LATENCY = 0.8e-6  # seconds from a copy's issue to its data
START = 2e-6  # of a program: its first copies, and its results
ADD = 4e-6  # of the kernel that adds up the parts
CHUNK = 512  # tokens of a part at least
MOST_PARTS = 64


class Tiles(NamedTuple):
    """The programs of one call: a panel of `panel` features each, against `gathered` ones."""

    programs: int
    panel: int
    gathered: int
    loads: int  # features that all of them load for one token
    numel: int  # of the values


def chunk_of_tokens(tokens: int, tiles: Tiles) -> int:
    """Tokens of a part, a multiple of BLOCK_T: by the index and the shapes alone."""
    return _part(tokens, splits_of(tokens, tiles))


@functools.lru_cache(maxsize=1024)
def splits_of(tokens: int, tiles: Tiles) -> int:
    """How many parts take the least time; of equals the fewest."""
    most = min(max(1, tokens // CHUNK), MOST_PARTS)
    return min(range(1, most + 1), key=lambda splits: seconds(tokens, tiles, splits))


def seconds(tokens: int, tiles: Tiles, splits: int) -> float:
    """What a call takes: the fullest processor or the cache, whichever is slower, then the sums."""
    features = tiles.panel + tiles.gathered
    resident = min(MOST_RESIDENT, SHARED // (PIPELINE * features * BLOCK_T * 2))
    on_one = _cdiv(tiles.programs * splits, PROCESSORS)  # programs of the fullest processor
    rounds = _cdiv(on_one, max(1, resident))
    math = 2 * tiles.panel * tiles.gathered / (MATH / PROCESSORS)
    a_token = max(math, 2 * features / TAKE)  # of one program, as fast as the processor can
    waiting = LATENCY / ((PIPELINE - 1) * BLOCK_T)  # of one program, as fast as copies come
    fullest = max(on_one * a_token, rounds * waiting) * _part(tokens, splits) + rounds * START
    cache = 2 * tiles.loads * tokens / CACHE
    sums = 0.0 if splits == 1 else ADD + 2 * 4 * splits * tiles.numel / MEMORY
    return max(fullest, cache) + sums


def _part(tokens: int, splits: int) -> int:
    return _cdiv(tokens, splits * BLOCK_T) * BLOCK_T


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)
