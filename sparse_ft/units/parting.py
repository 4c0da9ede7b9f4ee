"""Parting: the features of an input fall into the smallest sets that share nothing before it."""

from typing import NamedTuple

import torch

from .probe import Probe

NONE, SEVERAL = -1, -2  # as a label: of nothing, of more than one


class Parts(NamedTuple):
    """columns: int64 [size], to which part each feature of the input belongs, from 0 on; NONE:
    it depends on no source. rows: the same for each source; SEVERAL: several depend on it.
    """

    count: int  # type: ignore[assignment]  # not tuple's method
    columns: torch.Tensor
    rows: list[torch.Tensor]


def parted(probe: Probe) -> Parts:
    """The parts of a probe's input.

    Second derivatives, which a function of somebody's own may not have, save time; what they lead
    to is held against first ones.
    """
    parts = _parted(probe)
    if not _holds(probe, parts) and probe.distrust():
        parts = _parted(probe)
    return parts


def _holds(probe: Probe, parts: Parts) -> bool:
    """Whether no row is in two parts, and none reaches a feature that is in no part."""
    left = probe.tying(probe.rows(parts.columns == NONE))
    torn = probe.tying([mine == SEVERAL for mine in parts.rows])
    return not any(bool(mine.any()) for mine in (*left, *torn))


def _parted(probe: Probe) -> Parts:
    columns = _columns(probe)
    count = int(columns.max()) + 1
    return Parts(count, columns, _coded(probe, columns, count, columns != NONE))


def _columns(probe: Probe) -> torch.Tensor:
    labels = torch.full((probe.size,), NONE, device="cpu")
    fed = probe.columns(probe.tying(probe.rows(probe.every)))
    if not fed.any():
        return labels
    first = _part(probe, int(fed.nonzero()[0]))
    if bool(first[fed].all()):
        labels[fed] = 0
        return labels
    tied = _tied(probe, fed)
    count = 0
    for column in fed.nonzero().flatten().tolist():
        if labels[column] != NONE:
            continue
        if tied[column]:
            labels[_part(probe, column)] = count
        else:
            labels[column] = count
        count += 1
    return labels


def _part(probe: Probe, column: int) -> torch.Tensor:
    """bool [size]: all that is tied to one feature, directly or through others."""
    found = torch.zeros(probe.size, dtype=torch.bool, device="cpu")
    found[column] = True
    while True:
        more = found | probe.columns(probe.tying(probe.rows(found)))
        if torch.equal(more, found):
            return found
        found = more


def _tied(probe: Probe, fed: torch.Tensor) -> torch.Tensor:
    """bool [size]: features that depend on a row on which others depend too."""
    numbers = torch.arange(probe.size, device="cpu")
    labels = _coded(probe, numbers, probe.size, fed)
    return probe.columns(probe.tying([mine == SEVERAL for mine in labels]))


def _coded(
    probe: Probe, numbers: torch.Tensor, count: int, among: torch.Tensor
) -> list[torch.Tensor]:
    """Which number each row answers to, by the digits of the numbers: two questions a digit.

    numbers: int64 [size], of each column, below count. among: the columns that are asked for. A
    row that answers to both values of a digit has SEVERAL, one that never answers NONE.
    """
    answers = probe.rows(among)
    found = [torch.where(mine, 0, NONE) for mine in answers]
    for digit in range(max(count - 1, 0).bit_length()):
        is_one = (numbers >> digit) & 1 == 1
        zeros, ones = probe.rows(among & ~is_one), probe.rows(among & is_one)
        for mine, zero, one in zip(found, zeros, ones):
            single = mine >= 0
            mine[single & one] += 1 << digit
            mine[(mine != NONE) & zero & one] = SEVERAL
    return found
