"""Functions over deltas that know their base: WiSE-FT, LiNeS, model stock, momentum.

Each gives a delta of the same base; buffers whose base is not known stay as they are. `sft.diff`,
`sft.convert(..., origin=True)` and `sft.deltas.on_base(delta, base)` give deltas that know it.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

import torch

from .applying import mixed
from .delta import Delta
from .dense import names_of, put_together, shared
from .part import Part
from .places import BUFFER
from .same_base import rest_of_both, rest_of_part


def wise_ft(delta: Delta, alpha: float) -> Delta:
    """base + alpha * (fine-tuned - base) (WiSE-FT, Wortsman et al. 2022).

    0 is the base, 1 the fine-tuned model, exactly.
    """
    return _scaled(delta, lambda name: alpha)


def lines(
    delta: Delta, alpha: float, beta: float, layer_of: Callable[[str], int | None] | None = None
) -> Delta:
    """Layer i of L keeps alpha + beta * i / (L - 1) of its change (LiNeS, Wang et al. 2025).

    Little in the first layers, which hold what is general, much in the last ones.

    layer_of: the number of the layer, from 0, of a tensor by its name; default: the first number in
    the name. Tensors without one count with the first layer where they come before all layers (an
    embedding), else with the last (a head).
    """
    numbers = _layers(list(delta), layer_of or _first_number)
    last = max(numbers.values())

    def share(name: str) -> float:
        return alpha + beta * (numbers[name] / last if last else 1.0)

    return _scaled(delta, share)


def _first_number(name: str) -> int | None:
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return int(found[1]) if found else None


def _layers(names: list[str], layer_of: Callable[[str], int | None]) -> dict[str, int]:
    """The layer of each tensor, counted from 0 without holes."""
    found = {name: layer_of(name) for name in names}
    known = sorted({number for number in found.values() if number is not None})
    if not known:
        return dict.fromkeys(names, 0)
    ranks = {number: rank for rank, number in enumerate(known)}
    first = next(at for at, name in enumerate(names) if found[name] is not None)
    layers = {}
    for at, name in enumerate(names):
        number = found[name]
        outside = 0 if at < first else ranks[known[-1]]
        layers[name] = outside if number is None else ranks[number]
    return layers


def _scaled(delta: Delta, share: Callable[[str], float]) -> Delta:
    _check_origin([delta])
    parts = {}
    for name, part in delta.items():
        is_kept = part.origin is None or not part.values.is_floating_point()
        values = part.values if is_kept else mixed(part.origin, part.values, share(name))
        parts[name] = part.with_values(values)
    return delta.with_parts(parts)


def model_stock(deltas: Sequence[Delta]) -> Delta:
    """base + t * (mean of the deltas), tensor by tensor (Model Stock, Jang et al. 2024).

    t = N cos / (1 + (N - 1) cos): cos is the mean over pairs of the N deltas of the cosine between
    their changes, 0 where one does not touch a tensor. At least two deltas.
    """
    if len(deltas) < 2:
        raise ValueError(f"deltas: model stock needs two or more, got {len(deltas)}")

    def stock(changes: torch.Tensor) -> torch.Tensor:
        count = len(changes)
        cosines = []
        for i in range(count):
            for j in range(i + 1, count):
                norms = (changes[i].norm() * changes[j].norm()).clamp(min=1e-6)
                cosines.append(((changes[i] * changes[j]).sum() / norms).clamp(-1, 1))
        cosine = torch.stack(cosines).mean()
        share = count * cosine / (1 + (count - 1) * cosine)
        return share * changes.mean(0)

    return _combined(deltas, stock)


def momentum(deltas: Sequence[Delta], beta: float) -> Delta:
    """A slow model that follows fast ones, one task after the other, from the base on.

    slow = beta * slow + (1 - beta) * fast (momentum-based weight interpolation, Stojanovski et al.
    2022).

    deltas: what each task's model changed, in the order of the tasks. beta: in [0, 1]; 0 is the
    last one.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected a number in [0, 1], got {beta!r}")

    def follow(changes: torch.Tensor) -> torch.Tensor:
        slow = torch.zeros_like(changes[0])
        for fast in changes:
            slow = torch.lerp(fast, slow, beta)
        return slow

    return _combined(deltas, follow)


def _combined(deltas: Sequence[Delta], change: Callable[[torch.Tensor], torch.Tensor]) -> Delta:
    """The delta whose change of each tensor is `change` of those [deltas, n] of `deltas`."""
    _check_origin(deltas)
    parts = {}
    for name in names_of(deltas):
        mine = [delta[name] for delta in deltas if name in delta]
        if not mine[0].values.is_floating_point() or any(part.origin is None for part in mine):
            parts[name] = mine[-1]
            continue
        parts[name] = _combined_part(name, mine, [name in delta for delta in deltas], change)
    return Delta(parts, rest_of_both(deltas, list(parts)), deltas[0].base_name)


def _combined_part(
    name: str,
    parts: list[Part],
    has_part: list[bool],
    change: Callable[[torch.Tensor], torch.Tensor],
) -> Part:
    all_of = shared(parts)
    wide = torch.promote_types(all_of.values.dtype, torch.float32)
    origin = all_of.origin.to(wide)
    changes = torch.zeros(len(has_part), len(origin), dtype=wide, device="cpu")
    changes[torch.tensor(has_part, device="cpu")] = all_of.values.to(wide) - origin
    values = (origin + change(changes)).to(all_of.values.dtype)
    part = put_together(parts, all_of, values, all_of.origin)
    return dataclasses.replace(part, rest=rest_of_part(name, parts, part))


def _check_origin(deltas: Sequence[Delta]) -> None:
    for delta in deltas:
        for name, part in delta.items():
            if part.origin is None and part.reader != BUFFER:
                raise ValueError(
                    f"delta: nothing tells what the base holds of {name!r};"
                    " sft.deltas.on_base(delta, base) looks it up"
                )
