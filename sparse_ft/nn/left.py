"""Entries that trained once, train no more and keep what they learnt.

Part of what fine-tuning changed, though no selection names them.
"""

from typing import Any, NamedTuple

import torch


class Left(NamedTuple):
    """positions: [n] int64, sorted flat positions in the matrix.

    origin: [n], what they held before they trained; None: not kept.
    """

    positions: torch.Tensor
    origin: torch.Tensor | None


def left_after(state: Any, old: torch.Tensor, new: torch.Tensor, keeps: bool) -> Left | None:
    """What has left the selection of `state` once it is another one; None where nothing has.

    old, new: int64 [values], flat positions of its values before and after, -1 for padding. keeps:
    whether entries that train no more keep what they learnt.
    """
    before, origin = state.left, state.origin
    positions, origins = [], []
    if before is not None:
        positions.append(before.positions.to(new.device))
        origins.append(before.origin)
    if keeps:
        inside = old >= 0
        positions.append(old[inside])
        origins.append(None if origin is None else origin.reshape(-1)[inside])
    if not positions:
        return None
    every = torch.cat(positions)
    known = _joined(origins, new.device)
    stays = ~torch.isin(every, new)
    order = every[stays].argsort()
    if not len(order):
        return None
    return Left(every[stays][order], None if known is None else known[stays][order])


def _joined(origins: list[Any], device: torch.device) -> torch.Tensor | None:
    if any(origin is None for origin in origins):
        return None
    return torch.cat([origin.to(device, origins[-1].dtype) for origin in origins])


def with_left_origins(
    left: Left | None, positions: torch.Tensor, found: torch.Tensor
) -> torch.Tensor:
    """`found`, what a matrix holds at flat `positions`, or held before these trained.

    That is known of those that have `left` the selection: such an entry may join again.
    """
    if left is None or left.origin is None:
        return found
    known = left.positions.to(positions.device)
    at = torch.searchsorted(known, positions.clamp(min=0)).clamp(max=len(known) - 1)
    origin = left.origin.to(found.device, found.dtype)[at]
    return torch.where(known[at] == positions, origin, found.reshape(-1)).view(found.shape)


def check_left(key: str, positions: Any, origin: Any, entries: int) -> None:
    """Raise RuntimeError unless what a state_dict holds under `key` can be those of a matrix.

    entries: of the matrix.
    """
    is_list = isinstance(positions, torch.Tensor) and positions.dim() == 1
    if not is_list or positions.dtype != torch.int64:
        raise RuntimeError(f"state_dict: {key!r}: expected a list of int64, got {positions!r}")
    is_rising = bool((positions[1:] > positions[:-1]).all())
    if not is_rising or (len(positions) and not 0 <= positions[0] <= positions[-1] < entries):
        raise RuntimeError(
            f"state_dict: {key!r}: expected rising positions of a weight with {entries:,} entries"
        )
    if origin is not None and origin.shape != positions.shape:
        raise RuntimeError(
            f"state_dict: {key!r}: {len(positions)} entries, and the origin of"
            f" {tuple(origin.shape)}"
        )
