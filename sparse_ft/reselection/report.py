"""What `sft.reselect` has done, parameter by parameter."""

import dataclasses
from typing import Any

from ..texts import aligned


@dataclasses.dataclass(slots=True, frozen=True)
class Reselected:
    """What became of the selection of one parameter, in entries.

    rounded: the most that 8-bit moments lost by being put into other blocks, as a share of the
    largest in the block. merged: how many ages were given up, as 256 are all there are.
    """

    name: str
    kept: int
    joined: int
    dropped: int
    rounded: float = 0.0
    merged: int = 0


class ReselectReport(list[Reselected]):
    """A `Reselected` for each parameter whose selection changed; prints as a table."""

    @property
    def kept(self) -> int:
        return sum(each.kept for each in self)

    @property
    def joined(self) -> int:
        return sum(each.joined for each in self)

    @property
    def dropped(self) -> int:
        return sum(each.dropped for each in self)

    def __str__(self) -> str:
        if not self:
            return "nothing changed"
        lines = [("parameter", "kept", "joined", "dropped")]
        lines += [_cells(each.name, each) for each in self]
        lines.append(_cells("all", self))
        text = aligned(lines, numbers=(1, 2, 3))
        rounded = max(each.rounded for each in self)
        if rounded:
            text.append(
                f"8-bit moments are in other blocks now: rounded by at most {rounded:.1%} of the"
                " largest in a block"
            )
        merged = sum(each.merged for each in self)
        if merged:
            text.append(
                f"{merged} ages were given to their neighbours: 256 a parameter is the most"
            )
        return "\n".join(text)


def _cells(name: str, counts: Any) -> tuple[str, str, str, str]:
    return name, f"{counts.kept:,}", f"{counts.joined:,}", f"{counts.dropped:,}"
