"""restore: a slider from the pretrained model to the trained one, exact at both ends."""

import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from .converted import converted_part, record_of, sync
from .messages import did_you_mean
from .nn.origin import Origin, origins_in
from .nn.sharded import WHOLE, refuse_sharded
from .nn.state import Slide
from .nn.steps import owner_of


class Step(NamedTuple):
    """From what entries hold to what they are to hold, and what is kept meanwhile."""

    before: torch.Tensor
    after: torch.Tensor
    slide: Slide | None


class Move(NamedTuple):
    """What is written over one trained parameter and over entries that have left its selection."""

    known: Origin
    parameter: nn.Parameter
    step: Step
    left: Step | None
    slide: Slide | None


def restore(model: nn.Module, alpha: float | Mapping[str, float] = 0.0) -> nn.Module:
    """Move what trains to `origin + alpha * (trained - origin)`: 0.0 is the pretrained model, bit
    for bit, 1.0 the trained one, bit for bit, and what is between or beyond is interpolated in the
    dtype of what trains (WiSE-FT, Wortsman et al., 2022). Returns the model.

    model: converted by `sft.convert(..., origin=True)`. alpha: a number for all of it, or {name of
    a parameter of the plan: number}; the others stay where they are.

    Where the trained values are meanwhile: in the converted model, beside the origin; so a deep
    copy and a pickle of it come back, too. Entries that a reselection dropped and left as they were
    move with the others. A `state_dict` and `sft.revert` have what the model
    shows now. If it is trained on (or loaded) before it was brought back to 1.0, what it has then
    are its trained values, and the next `restore` says so. The optimiser's state is left alone.

    Raises ValueError for a model that has no origins or an alpha that is no finite number,
    KeyError for a name that has none; the model is left as it was.
    """
    if record_of(model) is None:
        part = converted_part(model)
        way_out = part or "; sft.convert(model, plan, origin=True) first"
        raise ValueError(f"model: it was not converted{way_out}")
    refuse_sharded(model, WHOLE)
    known = {each.label: (each, parameter) for each, parameter in origins_in(model)}
    if not known:
        raise ValueError(
            "model: its pretrained values were not kept; sft.convert(model, plan, origin=True)"
            " keeps them, before it is trained"
        )
    alphas = _by_name(alpha, list(known))
    with torch.no_grad():
        _warn_of([name for name in alphas if _is_changed(*known[name])])
        moves = [_move(*known[name], each) for name, each in alphas.items()]
        _carry_out(model, moves)
    return model


def _by_name(alpha: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    """{name: alpha} of what is to be moved."""
    asked: dict[str, Any] = (
        dict(alpha) if isinstance(alpha, Mapping) else dict.fromkeys(names, alpha)
    )
    for name, number in asked.items():
        if name not in names:
            raise KeyError(
                f"alpha: {name!r} has no origin in this model{did_you_mean(name, names)}"
            )
        is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
        if not is_number or not math.isfinite(number):
            raise ValueError(f"alpha: expected a finite number for {name!r}, got {number!r}")
    return {name: float(number) for name, number in asked.items()}


def _move(known: Origin, parameter: nn.Parameter, alpha: float) -> Move:
    """What will be written, all of it made before any of it is."""
    slide = None if _is_changed(known, parameter) else known.slide
    step = _step(parameter.detach(), known.origin, slide, alpha)
    left = None
    if known.left is not None:
        now = _weight_of(parameter)[known.left.positions]
        left = _step(now, known.left.origin, slide and slide.left, alpha)
    after = step.slide
    if after is not None and left is not None:
        after = Slide(after.trained, after.shown, left.slide)
    return Move(known, parameter, step, left, after)


def _step(now: torch.Tensor, origin: torch.Tensor, slide: Slide | None, alpha: float) -> Step:
    """now: what is there. slide: how it came there, if sft.restore put it there."""
    if slide is None:
        trained = before = now.clone()
    else:
        trained = slide.trained.to(now.device, now.dtype)
        before = slide.shown.to(now.device, now.dtype)
    if alpha == 1:
        return Step(before, trained, None)
    origin = origin.to(now.device, now.dtype)
    after = origin.clone() if alpha == 0 else torch.lerp(origin, trained, alpha)
    return Step(before, after, Slide(trained, after))


def _weight_of(values: nn.Parameter) -> torch.Tensor:
    """The flat weight of which `values` are the selected entries, to be read and written."""
    return owner_of(values)._matrix().view(-1)


def _is_changed(known: Origin, parameter: nn.Parameter) -> bool:
    """Whether somebody wrote what was moved, wherever the model was moved since."""
    if known.slide is None:
        return False
    shown = known.slide.shown.to(parameter.device, parameter.dtype)
    return not torch.allclose(parameter, shown, rtol=0, atol=0, equal_nan=True)


def _warn_of(changed: list[str]) -> None:
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        warnings.warn(
            f"{', '.join(changed[:3])}{more}: changed since sft.restore moved it (trained on, or"
            " loaded); what it is now are its trained values, and those that it had before are"
            " gone",
            stacklevel=3,
        )


def _carry_out(model: nn.Module, moves: list[Move]) -> None:
    """Write all, or, after an exception at any line, none: values that were written back show in
    their weights at the next forward.
    """
    slides = [move.known.slide for move in moves]
    try:
        for move in moves:
            _write(move, move.slide, move.step.after, move.left and move.left.after)
        sync(model)
    except BaseException:
        for move, slide in zip(moves, slides):
            _write(move, slide, move.step.before, move.left and move.left.before)
        raise


def _write(
    move: Move, slide: Slide | None, values: torch.Tensor, left: torch.Tensor | None
) -> None:
    move.known.slide = slide
    move.parameter.copy_(values)
    if left is not None:
        _weight_of(move.parameter)[move.known.left.positions] = left
