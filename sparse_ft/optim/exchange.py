"""What an optimiser keeps of one parameter becomes that of another selection of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ..ops._adamw_state import StateFormat
from ..ops._adamw_variation import MOST_GENERATIONS
from ..ops._eight_bit import dequantize, quantize
from ..ops._memory_order import as_in_memory, in_memory_order

# What of the old tensor is kept, with a number for the entries that join: `Moves.moved`.
Move = Callable[[torch.Tensor, Any], torch.Tensor]


@dataclasses.dataclass(slots=True, frozen=True)
class Seeded:
    """Moments that some of the entries that join begin with, each shaped as the new values.

    known: bool, those that have some. grad, grad_squared: means over `steps` gradients.
    """

    known: torch.Tensor
    grad: torch.Tensor
    grad_squared: torch.Tensor
    steps: int


@dataclasses.dataclass(slots=True)
class Exchanged:
    """The state for the new selection, by name. The old one is untouched."""

    state: dict[str, Any]
    rounded: float = 0.0  # most that 8-bit moments lost by it, as a share of their block's absmax
    merged: int = 0  # ages that were given to their neighbour


@dataclasses.dataclass(slots=True)
class Exchange:
    """How the state of values `old` becomes that of values `new`.

    format: of both, for SelectiveAdamW. by_entry: entries that join have an age of their own; else
    they are as old as the tensor. betas: of the parameter group, for `seeded`.
    """

    old: torch.Tensor
    new: torch.Tensor
    moved: Move
    format: StateFormat
    by_entry: bool
    seeded: Seeded | None
    betas: tuple[float, float]

    def of(self, state: dict[str, Any]) -> Exchanged:
        """The new state, for which `state` is looked at alone."""
        if not state:
            if self.seeded is None:
                return Exchanged({})
            state = self.format.new(self.old)  # before the first step
        done = Exchanged({"step": state["step"].clone()})
        fresh = self._fresh(float(state["step"]))
        for name, is_signed in (("exp_avg", True), ("exp_avg_sq", False)):
            self._moments(done, state, name, is_signed, fresh[name])
        if self.format.corrected:
            done.state["correction"] = self.moved(state["correction"], 0)
        if self.by_entry or "generation" in state:
            self._ages(done, state)
        return done

    def _fresh(self, step: float) -> dict[str, Any]:
        """The moments of entries that join."""
        seeded = self.seeded
        if seeded is None:
            return {"exp_avg": 0, "exp_avg_sq": 0}
        beta1, beta2 = self.betas
        age = seeded.steps if self.by_entry else step
        return {
            "exp_avg": seeded.grad * (1 - beta1**age),
            "exp_avg_sq": seeded.grad_squared * (1 - beta2**age),
        }

    def _moments(
        self, done: Exchanged, state: dict[str, Any], name: str, is_signed: bool, fresh: Any
    ) -> None:
        stored, absmax = state[name], state.get(f"{name}_absmax")
        if absmax is not None:
            flat = dequantize(as_in_memory(stored, self.old), absmax, is_signed)
            stored = in_memory_order(flat, self.old)
        elif self.format.eight_bit:
            stored = stored.float()
        wide = self.moved(stored, fresh)
        if not self.format.eight_bit:
            done.state[name] = wide.to(self.format.moments_dtype(self.new))
            return
        flat = as_in_memory(wide, self.new)
        codes, absmax = quantize(flat, is_signed)
        done.rounded = max(done.rounded, _rounding(flat, codes, absmax, is_signed))
        done.state[name] = in_memory_order(codes, self.new)
        done.state[f"{name}_absmax"] = absmax

    def _ages(self, done: Exchanged, state: dict[str, Any]) -> None:
        """Generations that no entry has any more go, and those that join have a new one."""
        step = state["step"].reshape(1)
        if "generation" in state:
            generation, births = state["generation"], state["births"]
        else:
            generation = torch.zeros_like(self.old, dtype=torch.uint8)
            births = torch.zeros_like(step)
        count = births.numel()
        fresh = count
        births = torch.cat((births, step if self.by_entry else torch.zeros_like(step)))
        if self.seeded is not None and self.by_entry:
            births = torch.cat((births, step - self.seeded.steps))
            fresh = torch.where(self.seeded.known, count + 1, count).to(torch.int32)
        # More than fit into a byte may be alive for a moment.
        numbers = self.moved(generation.int(), fresh)
        alive = torch.bincount(numbers.reshape(-1), minlength=births.numel()) > 0
        births, same = births[alive].unique(return_inverse=True)
        while births.numel() > MOST_GENERATIONS:
            births, places = _merged(births)
            same = places[same]
            done.merged += 1
        if births.numel() == 1 and not births.any():
            return  # all are as old as the tensor
        renumbered = torch.zeros_like(alive, dtype=torch.uint8)
        renumbered[alive] = same.to(torch.uint8)
        done.state["generation"] = renumbered[numbers]
        done.state["births"] = births


def exchanged_of_another(state: dict[str, Any], old: torch.Tensor, moved: Move) -> Exchanged:
    """The state of an optimiser that is not ours: what is shaped as the values belongs to their
    entries, which start at zero where they join.
    """
    check_moves(state, old)
    return Exchanged(
        {name: moved(what, 0) if _is_by_entry(what) else what for name, what in state.items()}
    )


def check_moves(state: dict[str, Any], old: torch.Tensor) -> None:
    """Raise TypeError for a tensor of another optimiser's state that belongs to no entry."""
    for name, what in state.items():
        if _is_by_entry(what) and what.shape != old.shape:
            raise TypeError(
                f"optimizer: its state {name!r} has shape {tuple(what.shape)} where the values"
                f" have {tuple(old.shape)}, so nothing tells which entry it belongs to; use"
                " SelectiveAdamW, or make a new optimiser after sft.revert and sft.convert"
            )


def _is_by_entry(what: Any) -> bool:
    return isinstance(what, torch.Tensor) and what.numel() > 1


def _rounding(
    flat: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, is_signed: bool
) -> float:
    error = (dequantize(codes, absmax, is_signed) - flat).abs()
    _, largest = quantize(error, signed=False)  # of each block
    share = largest / torch.where(absmax > 0, absmax, 1)
    return float(share.max()) if share.numel() else 0.0


def _merged(births: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two generations that lie closest in relation to their age become one, as old as the
    older.
    """
    newest = births[-1] + 1
    closeness = (births[1:] - births[:-1]) / (newest - births[:-1])
    at = int(closeness.argmin())
    keep = torch.ones_like(births, dtype=torch.bool)
    keep[at + 1] = False
    places = torch.arange(births.numel(), device=births.device)
    places[at + 1 :] -= 1
    return births[keep], places
