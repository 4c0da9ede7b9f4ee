"""How many entries of each of many weights are among the best of all, without putting them
together.

A score's bits, read as an integer, order as the numbers do: its 11 highest bits are a sign, an
exponent and two bits of the mantissa, so a histogram over them is one of logarithms. The first pass
over the scores finds in which of its 2,048 bins the border lies, the second and the third go on
inside of that bin with the other bits (fp64: six passes). What is held is one histogram a weight.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch

from .lots import drawn

STRIP = 1 << 20  # scores that are looked at together
Scores = Callable[[], Iterator[tuple[str, torch.Tensor]]]  # each call gives them all, 1-D, anew


class Digit(NamedTuple):
    """A part of a key: key >> shift, of which the lowest `bits` count."""

    shift: int
    bits: int


DIGITS = {
    torch.float32: [Digit(21, 11), Digit(10, 11), Digit(0, 10)],
    torch.float64: [*(Digit(shift, 11) for shift in (53, 42, 31, 20, 9)), Digit(0, 9)],
}
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


class Search(Protocol):
    """Looks for a border, a digit after the other: `count` of all scores, then `settle`."""

    def count(self, name: str, score: torch.Tensor, digit: Digit) -> None:
        """See the scores [units] of one weight, for this digit of their keys."""

    def settle(self, digit: Digit) -> None:
        """All scores were seen: fix this digit of the border."""


def run(searches: Mapping[str, Search], scores: Scores, dtype: torch.dtype) -> None:
    """Bring searches to their end, with one pass over the scores a digit.

    searches: {name of a weight: the search that it takes part in}.
    """
    for digit in DIGITS[dtype]:
        for name, score in scores():
            if name in searches:
                searches[name].count(name, score, digit)
            del score  # before the next one is made
        for search in {id(search): search for search in searches.values()}.values():
            search.settle(digit)


class BestOfAll:
    """{name: how many of its best are taken}, `want` in all.

    Every weight gets its floor first; what is left goes to the best of all, to no weight beyond its
    cap. `want` is at least the sum of the floors and at most that of the caps.
    """

    def __init__(self, dtype: torch.dtype, want: int, floors: dict[str, int], caps: dict[str, int]):
        self._dtype, self._want = dtype, want
        self._place = {name: number for number, name in enumerate(floors)}
        self._floors = torch.tensor(list(floors.values()), device="cpu")
        self._caps = torch.tensor([caps[name] for name in floors], device="cpu")
        self._prefix: int | None = None
        # Known to be over the border.
        self._above = torch.zeros(len(floors), dtype=torch.int64, device="cpu")
        self._at_border = torch.zeros_like(self._above)
        self._counts: torch.Tensor | None = None

    def count(self, name: str, score: torch.Tensor, digit: Digit) -> None:
        counts = self._bins(digit)[self._place[name]]
        for digits, _ in _in_strips(score, self._dtype, digit, self._prefix):
            counts += torch.bincount(digits, minlength=1 << digit.bits).cpu()

    def settle(self, digit: Digit) -> None:
        counts, self._counts = self._bins(digit), None
        # from the highest bin down: how many there are in it and above
        reached = counts.flip(1).cumsum(1).flip(1) + self._above[:, None]
        taken = reached.clamp(min=self._floors[:, None], max=self._caps[:, None]).sum(0)
        border = int((taken >= self._want).nonzero().amax())
        self._at_border = counts[:, border]
        self._above = reached[:, border] - self._at_border
        self._prefix = _joined(self._prefix, border, digit)

    def _bins(self, digit: Digit) -> torch.Tensor:
        """int64 [weights, values of the digit], counted so far."""
        if self._counts is None:
            self._counts = torch.zeros(
                len(self._place), 1 << digit.bits, dtype=torch.int64, device="cpu"
            )
        return self._counts

    def border(self, device: torch.device) -> torch.Tensor:
        """The score at the border, once all digits are settled."""
        key = torch.tensor([self._prefix], device=device)
        integer = torch.iinfo(_INTEGER[self._dtype])
        bits = key ^ ((key >> (integer.bits - 1)) & integer.max)
        return bits.to(_INTEGER[self._dtype]).view(self._dtype)[0]

    def shares(self, seed: int) -> dict[str, int]:
        """The number of each, now that all at the border are equal: of these some are drawn."""
        certain = self._above.clamp(min=self._floors, max=self._caps)
        possible = (self._above + self._at_border).clamp(min=self._floors, max=self._caps)
        extra = divided(self._want - int(certain.sum()), possible - certain, seed)
        return dict(zip(self._place, (certain + extra).tolist()))


@dataclasses.dataclass
class Bins:
    """[values of a digit]: how many scores have it, and what these add up to."""

    counts: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def of(cls, digit: Digit) -> "Bins":
        size = 1 << digit.bits
        return cls(
            torch.zeros(size, dtype=torch.int64, device="cpu"),
            torch.zeros(size, dtype=torch.float64, device="cpu"),
        )


class LargestSum:
    """How few of the best make up a sum, of scores that are not negative."""

    def __init__(self, dtype: torch.dtype, want: float):
        self._dtype, self._missing = dtype, want
        self.number = 0
        self._prefix: int | None = None
        self._bins: Bins | None = None

    def count(self, name: str, score: torch.Tensor, digit: Digit) -> None:
        if self._bins is None:
            self._bins = Bins.of(digit)
        for digits, inside in _in_strips(score, self._dtype, digit, self._prefix):
            self._bins.counts += torch.bincount(digits, minlength=1 << digit.bits).cpu()
            # On the CPU: a GPU adds in another order every time, and ranks must agree.
            amounts = inside.double().cpu()
            self._bins.sums += torch.bincount(digits.cpu(), amounts, minlength=1 << digit.bits)

    def settle(self, digit: Digit) -> None:
        bins = self._bins or Bins.of(digit)
        counts, sums = bins.counts, bins.sums
        self._bins = None
        reached = sums.flip(0).cumsum(0).flip(0)
        enough = (reached >= self._missing) & (counts > 0)
        filled = counts.nonzero()
        if not filled.numel():
            return
        border = int(enough.nonzero().amax()) if enough.any() else int(filled.amin())
        self.number += int(counts[border + 1 :].sum())
        self._missing -= float(reached[border] - sums[border])
        self._prefix = _joined(self._prefix, border, digit)
        if digit.shift == 0:  # all in this bin are equal
            one = float(sums[border]) / int(counts[border])
            needed = -(-self._missing // one) if one > 0 else 0
            self.number += int(min(max(needed, 0), int(counts[border])))


def kth_largest(score: torch.Tensor, number: int) -> torch.Tensor:
    """The smallest of the `number` largest of `score` [n], as a number of its dtype.

    A large tensor is looked through in strips: sorting it would take four times its memory.
    """
    if score.numel() <= STRIP:
        return score.topk(number, sorted=False).values.amin()
    dtype = torch.promote_types(score.dtype, torch.float32)
    search = BestOfAll(dtype, number, {"": 0}, {"": score.numel()})
    for digit in DIGITS[dtype]:
        search.count("", score, digit)
        search.settle(digit)
    return search.border(score.device).to(score.dtype)


def keys_of(score: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """int64: integers that order as the numbers of `score` do, as fp32 or fp64; −0 is 0."""
    integer = torch.iinfo(_INTEGER[dtype])
    bits = (score.to(dtype) + 0.0).view(_INTEGER[dtype])
    negative = bits >> (integer.bits - 1)
    return (bits ^ (negative & integer.max)).to(torch.int64)


def _in_strips(
    score: torch.Tensor, dtype: torch.dtype, digit: Digit, prefix: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(digits, scores) of the scores that begin with `prefix`."""
    for strip in score.split(STRIP):
        rest = keys_of(strip, dtype) >> digit.shift
        if prefix is None:
            yield rest + (1 << (digit.bits - 1)), strip  # the highest digit holds the sign
        else:
            inside = (rest >> digit.bits) == prefix
            yield rest[inside] & ((1 << digit.bits) - 1), strip[inside]


def _joined(prefix: int | None, digit_value: int, digit: Digit) -> int:
    """The prefix with one more digit."""
    if prefix is None:
        return digit_value - (1 << (digit.bits - 1))
    return (prefix << digit.bits) | digit_value


def divided(number: int, room: torch.Tensor, seed: int) -> torch.Tensor:
    """int64 like `room`: `number` divided in proportion to the room there is, to none more than
    that; what proportion leaves over goes to some that the seed draws.
    """
    total = int(room.sum())
    if number >= total:
        return room.clone()
    shares = torch.tensor(
        [number * int(size) // total for size in room], dtype=torch.int64, device="cpu"
    )
    while left := number - int(shares.sum()):
        open_ones = (shares < room).nonzero().squeeze(1)
        lucky = open_ones[drawn(open_ones.numel(), left, seed)]
        shares[lucky] += 1
    return shares
