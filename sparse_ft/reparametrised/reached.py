"""Deltas that no gradient reached before a step are told by name, once: their layer's forward was
never called.

torch's hook after steps is there as long as deltas stand on layers, and no longer.
"""

import warnings
import weakref
from typing import Any

import torch

from ..nn.step_hook import StepHook
from .part import Reparametrised

# Sets. Dictionaries tell their references at once, while another thread may add to them.
_standing: "weakref.WeakKeyDictionary[Reparametrised, None]" = weakref.WeakKeyDictionary()
_watched: "weakref.WeakKeyDictionary[Reparametrised, None]" = weakref.WeakKeyDictionary()


def watch(part: Reparametrised) -> None:
    """Look at this one after the next step of an optimiser that holds it."""
    _standing[part] = _watched[part] = None
    weakref.finalize(part, _hook_or_unhook).atexit = False
    _hook_or_unhook()


def unwatch(part: Reparametrised) -> None:
    """Undo `watch`."""
    _standing.pop(part, None)
    _watched.pop(part, None)
    _hook_or_unhook()


def _hook_or_unhook() -> None:
    # The length counts one whose finalizer this is.
    _hook.keep(any(reference() is not None for reference in _standing.keyrefs()))


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if not torch.compiler.is_compiling() and len(_watched):
        _tell(optimizer)


_hook = StepHook(_after_step)


def _tell(optimizer: torch.optim.Optimizer) -> None:
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    # An optimiser may have used the gradient and freed it.
    reached = getattr(optimizer, "got_gradient", _has_gradient)
    for part in [reference() for reference in _watched.keyrefs()]:
        if part is None:
            continue
        own = [each for each in part.parameters() if id(each) in held and each.requires_grad]
        if not own:
            continue
        _watched.pop(part, None)
        if not any(reached(each) for each in own):
            warnings.warn(
                f"{part.label}: its {part.kind} got no gradient before the optimiser's step; was"
                " the layer called, by its own name, in the forward?",
                stacklevel=4,
            )


def _has_gradient(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None
