"""Deltas that no gradient reached before a step are told by name, once: their layer's forward was
never called.

torch's hook after steps is there as long as deltas stand on layers, and no longer.
"""

import warnings
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .part import Reparametrised

_standing: "weakref.WeakSet[Reparametrised]" = weakref.WeakSet()
_watched: "weakref.WeakSet[Reparametrised]" = weakref.WeakSet()
_hook: Any = None  # the handle of `_after_step`
_running = 0  # how many calls of it are under way: torch goes through its hooks, none may go


def watch(part: Reparametrised) -> None:
    """Look at this one after the next step of an optimiser that holds it."""
    global _hook
    _standing.add(part)
    _watched.add(part)
    weakref.finalize(part, _unhook).atexit = False
    if _hook is None:
        _hook = register_optimizer_step_post_hook(_after_step)


def unwatch(part: Reparametrised) -> None:
    """Undo `watch`."""
    _standing.discard(part)
    _watched.discard(part)
    _unhook()


def _unhook() -> None:
    global _hook
    if _hook is not None and not _running and not len(_standing):
        _hook.remove()
        _hook = None


def _after_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    global _running
    if torch.compiler.is_compiling() or not len(_watched):
        return
    _running += 1
    try:
        _tell(optimizer)
    finally:
        _running -= 1


def _tell(optimizer: torch.optim.Optimizer) -> None:
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    # An optimiser may have used the gradient and freed it.
    reached = getattr(optimizer, "got_gradient", _has_gradient)
    for part in list(_watched):
        own = [each for each in part.parameters() if id(each) in held and each.requires_grad]
        if not own:
            continue
        _watched.discard(part)
        if not any(reached(each) for each in own):
            warnings.warn(
                f"{part.label}: its {part.kind} got no gradient before the optimiser's step; was"
                " the layer called, by its own name, in the forward?",
                stacklevel=4,
            )


def _has_gradient(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None
