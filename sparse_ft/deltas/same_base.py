"""Whether deltas are of one base, told by the deltas alone.

And the fingerprint of what several of them leave alone together.
"""

from collections.abc import Sequence

from .delta import Delta
from .dense import in_order
from .fingerprint import fingerprint, fingerprint_of_entries, line_of, without, written
from .overlap import sorted_positions
from .part import Part
from .places import BUFFER


def _of_base(part: Part) -> int | None:
    """The fingerprint of the base's whole tensor; None where the part does not know enough."""
    if part.origin is None or (part.selection is not None and not part.rest):
        return None
    if part.selection is None:
        return fingerprint(part.origin)
    return (int(part.rest, 16) + _of_entries(part)) % (1 << 64)


def _of_entries(part: Part) -> int:
    return fingerprint_of_entries(in_order(part, part.known_origin), sorted_positions(part))


def rest_of_part(name: str, parts: Sequence[Part], merged: Part) -> str:
    """The fingerprint of the base's entries that `merged`, made of `parts`, leaves alone.

    "" where the parts do not know enough. Raises ValueError where they are of different bases.
    """
    if merged.selection is None:
        return ""
    wholes = {_of_base(part) for part in parts}
    known = {whole for whole in wholes if whole is not None}
    if len(known) < len(wholes):
        rests = {part.rest for part in parts if part.selection == merged.selection}
        return rests.pop() if len(rests) == 1 and len(parts) == 1 else ""
    if len(known) > 1:
        _refuse(name)
    return written((known.pop() - _of_entries(merged)) % (1 << 64))


def rest_of_both(deltas: Sequence[Delta], names: Sequence[str]) -> str | None:
    """The fingerprint of the base's parameters other than `names`, all that `deltas` touch.

    None where they do not know enough. Raises ValueError where they are of different bases.
    """
    lines: dict[str, int] = {}
    for delta in deltas:
        for name, part in delta.items():
            whole = _of_base(part)
            if whole is not None:
                line = line_of(name, part.shape, part.values.dtype, whole)
                if lines.setdefault(name, line) != line:
                    _refuse(name)
    rests = set()
    for delta in deltas:
        touched = {name for name in names if name not in delta and not _is_buffer(deltas, name)}
        if delta.rest is None or not touched <= lines.keys():
            return None
        rests.add(without(delta.rest, [lines[name] for name in touched]))
    if len(rests) > 1:
        raise ValueError(
            "deltas: they are of different bases, for what they leave alone has other fingerprints"
        )
    return rests.pop()


def _is_buffer(deltas: Sequence[Delta], name: str) -> bool:
    return any(name in delta and delta[name].reader == BUFFER for delta in deltas)


def _refuse(name: str) -> None:
    raise ValueError(f"deltas: they are of different bases, which hold other numbers in {name!r}")
