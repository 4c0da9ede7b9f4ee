"""Whose step changes which values: torch's post-step hook, the same for every optimiser of the
process.

- An optimiser that holds `values` has stepped: its module is told (`Selected.after_step`), and is
  from now on *claimed* by this optimiser.
- Any other optimiser may step a copy of the values that is written back later and leaves no trace
  (fp32 masters, the partitions of DeepSpeed's ZeRO, hand-written loops with `p.data.copy_`). A
  module that nobody has claimed is told after each step (`Selected.after_foreign_step`): its weight
  shows the values anew in the next forward.
- A claim ends with its optimiser. One that lives on without stepping (a warm-up's) must not hide
  what follows it: it counts against another optimiser once it has stepped after a step of that one,
  as the two of a GAN do in turns.
"""

import warnings
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .._torch import is_compiling
from .lost import warn_of_lost

_owners = {}  # id of values, while they live -> the Selected modules that have held them, weakly
_live = weakref.WeakSet()  # every Selected module
_unclaimed = {}  # id of a Selected module that no optimiser has stepped -> the module, weakly
_steppers = weakref.WeakKeyDictionary()  # optimiser that has stepped -> its Stepper
_step_hook = None


class Stepper:
    """One optimiser that has stepped.

    modules: the Selected modules that it claims. strangers: the steppers whose claims do not count
    against it, since they have not stepped after one of its own steps. waiting: those whose
    stranger this one is until its next step.
    """

    def __init__(self):
        self.modules = weakref.WeakSet()
        self.strangers = set()
        self.waiting = set()


def owner_of(values: torch.Tensor) -> Any:
    """The one `Selected` module whose `values` this tensor is; None where there is none or more
    than one.
    """
    owners = _owners_of(values)
    return owners[0] if len(owners) == 1 else None


def _owners_of(values):
    return _holders(_owners.get(id(values), ()), values)


def _holders(owners, values):
    return [
        module
        for of in owners
        if (module := of()) is not None and module._parameters.get("values") is values
    ]


class _Owner(weakref.ref):
    """A module that has held some values, and how it is called, which stays known when
    it is gone.
    """

    __slots__ = ("label",)


def own(module: Any, values: torch.Tensor) -> None:
    """Remember that the Selected `module` has held `values`, until one of them is gone; nobody has
    stepped these yet.
    """
    global _step_hook
    if _step_hook is None:
        _step_hook = register_optimizer_step_post_hook(_after_step)
    if id(values) not in _owners:
        weakref.finalize(values, _owners.pop, id(values), None).atexit = False
    others = [
        reference for reference in _owners.get(id(values), ()) if reference() not in (None, module)
    ]
    owner = _Owner(module)
    owner.label = module._sparse_ft_state.label
    _owners[id(values)] = *others, owner
    if module not in _live:
        _live.add(module)
        weakref.finalize(module, _unclaimed.pop, id(module), None).atexit = False
    _unclaim(module)


def disown(module: Any) -> None:
    """Forget a module that is selective no more. The hook stays: an optimiser may still hold its
    values, and is told so.
    """
    _live.discard(module)
    _unclaimed.pop(id(module), None)
    state = module.__dict__["_sparse_ft_state"]
    if (
        state.claim is not None
    ):  # its optimiser may live on beside others, whose steps are no business of a plain layer
        state.claim.modules.discard(module)
        state.claim = None


def _unclaim(module):
    if module in _live:
        module._sparse_ft_state.claim = None
        _unclaimed[id(module)] = weakref.ref(module)


def _after_step(optimizer, *_):
    """torch calls this after the step of every optimiser: what it holds may have changed without
    any other trace.
    """
    if not is_compiling() or _unclaimed or _holds_values(optimizer):
        _note(optimizer)


def _holds_values(optimizer):
    return any(
        id(parameter) in _owners
        for group in optimizer.param_groups
        for parameter in group["params"]
    )


@torch.compiler.disable(
    reason="sparse_ft notes the step of an optimiser that holds, or may hold, selected values"
)
def _note(optimizer):
    stepper = _steppers.get(optimizer)
    if stepper is None:
        stepper = _new_stepper(optimizer)
        _warn_if_made_before_conversion(optimizer)
    for other in stepper.waiting:
        other.strangers.discard(stepper)
    stepper.waiting.clear()
    written = getattr(optimizer, "writes_through", False)
    reached = getattr(
        optimizer, "got_gradient", _has_gradient
    )  # an optimiser may have used it and freed it
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            owners = _owners.get(id(parameter))
            if owners is None:
                continue
            holders = _holders(owners, parameter)
            for holder in holders:
                holder.after_step(written, reached(parameter))
                if holder._sparse_ft_state.claim is not stepper:
                    _claim(holder, stepper)
            if not holders:
                _warn_of_orphan(parameter)
    for other in stepper.strangers:
        other.waiting.add(stepper)
        for module in list(other.modules):
            module.after_foreign_step()
    for reference in list(_unclaimed.values()):
        module = reference()
        if module is not None:
            module.after_foreign_step()


def _warn_of_orphan(values):
    """An optimiser steps on values that train no weight any more: their module was replaced, or has
    other values.
    """
    owners = _owners.pop(id(values))  # told once
    warnings.warn(
        f"{owners[-1].label}: this optimiser holds values that train no weight any more (the module"
        " was replaced, resized or reverted since); convert anew where needed, and make a new"
        " optimiser from model.parameters()",
        stacklevel=6,
    )


def _has_gradient(parameter):
    return parameter.grad is not None


def _new_stepper(optimizer):
    stepper = _steppers[optimizer] = Stepper()
    stepper.strangers.update(other for other in _steppers.values() if other.modules)
    weakref.finalize(optimizer, _end, stepper).atexit = False
    return stepper


def _claim(module, stepper):
    state = module._sparse_ft_state
    if state.claim is not None:
        state.claim.modules.discard(module)
    if not stepper.modules:
        for other in _steppers.values():
            if other is not stepper:
                other.strangers.add(stepper)
    stepper.modules.add(module)
    state.claim = stepper
    _unclaimed.pop(id(module), None)


def _end(stepper):
    """Its optimiser is gone."""
    for module in list(stepper.modules):
        _unclaim(module)
    for other in list(_steppers.values()):
        other.strangers.discard(stepper)
        other.waiting.discard(stepper)


def _warn_if_made_before_conversion(optimizer):
    """An optimiser that holds a weight but not the values that train in its place does nothing,
    silently.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    lost = [
        module._sparse_ft_state.label
        for module in list(_live)
        if id(module._parameters.get("values")) not in held and id(module._weight_or_none()) in held
    ]
    if lost:
        warnings.warn(
            f"{', '.join(sorted(lost)[:3])}: this optimiser holds the weight but not the values"
            " that train; make it after sft.convert, from model.parameters()",
            stacklevel=6,
        )
    warn_of_lost(held)
