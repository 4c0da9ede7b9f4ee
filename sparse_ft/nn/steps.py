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

The hook is torch's as long as a selective module or the values of one live, and no longer: a
process that is done with this package steps as if it had never been imported.
"""

import warnings
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from .._torch import is_compiling
from ..parallel.dtensors import is_sharded_tensor
from ..parallel.shards import write
from .lost import converted_models, warn_of_lost
from .sharded import hide_gathered, is_gathered, meet_shards, values_of
from .state import NAME
from .step_hook import StepHook

if TYPE_CHECKING:
    from .showing import Showing


class Owner(weakref.ref):
    """A module that has held some values, and how it is called, which stays known when it is
    gone.

    values: those, weakly; None for shards, to which no weak reference may lead.
    """

    __slots__ = ("label", "values")

    label: str
    values: weakref.ref | None

    @classmethod
    def of(cls, module: "Showing", values: torch.Tensor) -> "Owner":
        owner = cls(module)
        owner.label = module._sparse_ft_state.label
        owner.values = None if is_sharded_tensor(values) else weakref.ref(values)
        return owner

    def has_held(self, values: torch.Tensor) -> bool:
        """Whether it is these, not others that had their id before and were not forgotten: Python
        drops a Ctrl-C in a finalizer, and the rest of the finalizer with it.
        """
        if self.values is None:
            return is_sharded_tensor(values)
        return self.values() is values


class Stepper:
    """One optimiser that has stepped.

    modules: the Selected modules that it claims. strangers: the steppers whose claims do not count
    against it, since they have not stepped after one of its own steps. waiting: those whose
    stranger this one is until its next step.
    """

    def __init__(self) -> None:
        self.modules: weakref.WeakSet[Showing] = weakref.WeakSet()
        self.strangers: set[Stepper] = set()
        self.waiting: set[Stepper] = set()


class Heard:
    """What the step of an optimiser that wrote the weights found out of its parameters, so that
    `_after_step` need not look at each.

    claims: the Steppers that claim the modules of those to which a word would change nothing
    (`_needs_no_word`). others: parameters that `_after_step` has to look at. No module owns the
    rest.
    """

    __slots__ = "claims", "others"

    def __init__(self) -> None:
        self.claims: list[Any] = []
        self.others: list[torch.Tensor] = []

    def left_for(self, stepper: Stepper) -> list[torch.Tensor] | None:
        """The parameters that are left to look at in a step of `stepper`; None: all of them."""
        is_its_own = all(claim is stepper for claim in self.claims)
        return self.others if is_its_own else None


_owners: dict[int, tuple[Owner, ...]] = {}  # id of values, while they live -> who has held them
_live: dict[int, weakref.ref] = {}  # id of a Selected module -> it, weakly
# id of a Selected module -> id of its values, where those are shards: torch swaps them for others
# when it moves a model, which it refuses for what weak references lead to.
_sharded: dict[int, int] = {}
_unclaimed: dict[int, weakref.ref] = {}  # id of a Selected module that nobody stepped -> it, weakly
_steppers: "weakref.WeakKeyDictionary[Optimizer, Stepper]" = weakref.WeakKeyDictionary()


def owner_of(values: torch.Tensor) -> Any:
    """The one `Selected` module whose `values` this tensor is; None where there is none or more
    than one.
    """
    owners = _owners.get(id(values))
    if owners is None:
        return None
    if len(owners) == 1:  # most, and every step asks
        module = owners[0]()
        return module if module is not None and _holds(module, values) else None
    holders = _holders(owners, values)
    return holders[0] if len(holders) == 1 else None


def owners_by_id() -> dict[int, tuple[Owner, ...]]:
    """What `owner_of` looks into, for who asks of many at once: {id of values: who has held
    them}.
    """
    return _owners


def _holders(owners: Iterable[Owner], values: torch.Tensor) -> "list[Showing]":
    """Those of the owners whose values these are still."""
    modules = [owner() for owner in owners]
    return [module for module in modules if module is not None and _holds(module, values)]


def _holds(module: "Showing", values: torch.Tensor) -> bool:
    return module._parameters.get("values") is values or values_of(module) is values


def own(module: "Showing", values: torch.Tensor) -> None:
    """Remember that the Selected `module` has held `values`, until one of them is gone; nobody has
    stepped these yet.
    """
    key = id(values)
    _forget_shards(module)
    known = [owner for owner in _owners.get(key, ()) if owner.has_held(values)]
    if is_sharded_tensor(values):
        _sharded[id(module)] = key
    elif not known:
        weakref.finalize(values, _forget, key).atexit = False
    others = [owner for owner in known if owner() not in (None, module)]
    _owners[key] = (*others, Owner.of(module, values))
    live = _live.get(id(module))
    if live is None or live() is not module:
        _live[id(module)] = weakref.ref(module)
        weakref.finalize(module, _forget_module, id(module)).atexit = False
    _unclaim(module)
    _hook_or_unhook()


def disown(module: "Showing") -> None:
    """Forget a module that is selective no more. An optimiser may still hold its values, and is
    told so: they are known until they are gone.
    """
    _forget_module(id(module))
    state = module.__dict__["_sparse_ft_state"]
    if state.claim is not None:
        # Its optimiser may live on beside others, whose steps are no business of a plain layer.
        state.claim.modules.discard(module)
        state.claim = None


def _forget_shards(module: "Showing") -> None:
    """The shards that were the values of a module are not any more."""
    _forget_shards_of(id(module))


def _forget_shards_of(key: int) -> None:
    shards = _sharded.pop(key, None)
    if shards is not None and all(owner.values is None for owner in _owners.get(shards, ())):
        _owners.pop(shards, None)


def meet_shards_in(parameters: Iterable[torch.Tensor]) -> None:
    """Find out which values FSDP2 has made shards in the models that an optimiser trains.

    Raises RuntimeError for values that it was told to ignore.
    """
    meet_shards(converted_models(), parameters)


def _forget(key: int) -> None:
    """The values with this id are gone, or nobody is to be told of them any more."""
    _owners.pop(key, None)
    _hook_or_unhook()


def _forget_module(key: int) -> None:
    """The module with this id is gone, or selective no more."""
    _live.pop(key, None)
    _unclaimed.pop(key, None)
    _forget_shards_of(key)
    _hook_or_unhook()


def _hook_or_unhook() -> None:
    """Hold the invariant: torch has the hook as long as a module or any values are known."""
    _hook.keep(bool(_owners or _live))


def _unclaim(module: "Showing") -> None:
    if id(module) in _live:
        module._sparse_ft_state.claim = None
        _unclaimed[id(module)] = weakref.ref(module)


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    """torch calls this after the step of every optimiser: what it holds may have changed without
    any other trace.
    """
    if not is_compiling() or _unclaimed or _holds_values(optimizer):
        _note(optimizer)


_hook = StepHook(_after_step)


def _held_by(optimizer: Optimizer) -> Iterable[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _holds_values(optimizer: Optimizer) -> bool:
    return any(id(parameter) in _owners for parameter in _held_by(optimizer))


@torch.compiler.disable(
    reason="sparse_ft notes the step of an optimiser that holds, or may hold, selected values"
)
def _note(optimizer: Optimizer) -> None:
    stepper = _steppers.get(optimizer)
    if stepper is None:
        meet_shards_in(_held_by(optimizer))
        stepper = _new_stepper(optimizer)
        _warn_if_made_before_conversion(optimizer)
    # Of lists: a collection in between may end an optimiser, which leaves these sets.
    for other in list(stepper.waiting):
        other.strangers.discard(stepper)
    stepper.waiting.clear()
    _tell_holders(optimizer, stepper)
    _tell_strangers(stepper)


def _tell_holders(optimizer: Optimizer, stepper: Stepper) -> None:
    """The modules whose values it holds are told of its step, and are its from now on."""
    written = getattr(optimizer, "writes_through", False)
    # An optimiser may have used the gradient and freed it.
    reached = getattr(optimizer, "got_gradient", _has_gradient)
    shards, gathered, orphans = [], [], []
    heard: Heard | None = optimizer.__dict__.pop("heard", None)  # of this step
    left = None if heard is None else heard.left_for(stepper)
    for parameter in _held_by(optimizer) if left is None else left:
        owners = _owners.get(id(parameter))
        if owners is None or (written and _needs_no_word(owners, parameter, stepper)):
            continue
        holders = _holders(owners, parameter)
        for holder in holders:
            holder.after_step(written, reached(parameter))
            state = holder._sparse_ft_state
            if state.claim is not stepper:
                _claim(holder, stepper)
            if state.shards is not None:
                shards.append(state.shards)
                if is_gathered(holder):
                    gathered.append(holder)
        if not holders:
            if owners[-1].has_held(parameter):
                orphans.append(owners[-1].label)
            _forget(id(parameter))  # told once
    if orphans:
        _warn_of_orphans(orphans)
    if shards:
        write(shards)
    if gathered:
        hide_gathered(converted_models(), gathered)


def _needs_no_word(owners: tuple[Owner, ...], values: torch.Tensor, stepper: Stepper) -> bool:
    """Whether `Showing.after_step`, of an optimiser that wrote the weight, would change nothing.

    So it is for most of many, and each step asks for each.
    """
    module = owners[0]()
    if module is None or len(owners) > 1 or values.grad is None:
        return False
    own = module.__dict__
    if own["_parameters"].get("values") is not values:  # of a reverted one, too
        return False
    if type(module).after_step is not type(module).usual_after_step:
        return False
    state = own[NAME]
    return state.claim is stepper and state.shards is None and not state.resized


def _tell_strangers(stepper: Stepper) -> None:
    """The modules that this step may have changed without any trace are told of it."""
    for other in list(stepper.strangers):
        other.waiting.add(stepper)
        for module in list(other.modules):
            module.after_foreign_step()
    for reference in list(_unclaimed.values()):
        unclaimed = reference()
        if unclaimed is not None:
            unclaimed.after_foreign_step()


def _warn_of_orphans(labels: list[str]) -> None:
    """An optimiser steps on values that train no weight any more: their module was replaced, or has
    other values. labels: of those weights.
    """
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    warnings.warn(
        f"{', '.join(labels[:3])}{more}: this optimiser holds values that train no weight any more"
        " (the module was replaced, resized or reverted, or fully_shard has split it, since);"
        " convert anew where needed, and make a new optimiser from model.parameters()",
        stacklevel=7,
    )


def _has_gradient(parameter: torch.Tensor) -> bool:
    return parameter.grad is not None


def _new_stepper(optimizer: Optimizer) -> Stepper:
    stepper = _steppers[optimizer] = Stepper()
    stepper.strangers.update(other for other in _known_steppers() if other.modules)
    weakref.finalize(optimizer, _end, stepper).atexit = False
    return stepper


def _known_steppers() -> list[Stepper]:
    """Of the optimisers that live. By a list of references, which is made at once: an optimiser of
    another thread may step for the first time meanwhile.
    """
    optimizers = [reference() for reference in _steppers.keyrefs()]
    known = [_steppers.get(each) for each in optimizers if each is not None]
    return [each for each in known if each is not None]


def _claim(module: "Showing", stepper: Stepper) -> None:
    state = module._sparse_ft_state
    if state.claim is not None:
        state.claim.modules.discard(module)
    if not stepper.modules:
        for other in _known_steppers():
            if other is not stepper:
                other.strangers.add(stepper)
    stepper.modules.add(module)
    state.claim = stepper
    _unclaimed.pop(id(module), None)


def _end(stepper: Stepper) -> None:
    """Its optimiser is gone."""
    for module in list(stepper.modules):
        _unclaim(module)
    for other in _known_steppers():
        other.strangers.discard(stepper)
        other.waiting.discard(stepper)


def _alive() -> "list[Showing]":
    modules = [reference() for reference in list(_live.values())]
    return [module for module in modules if module is not None]


def _warn_if_made_before_conversion(optimizer: Optimizer) -> None:
    """An optimiser that holds a weight but not the values that train in its place does nothing,
    silently.
    """
    held = {id(parameter) for parameter in _held_by(optimizer)}
    lost = []
    for module in _alive():
        values, weight = values_of(module), module._weight_or_none()
        if id(values) not in held and id(weight) in held:
            lost.append(module._sparse_ft_state.label)
    if lost:
        warnings.warn(
            f"{', '.join(sorted(lost)[:3])}: this optimiser holds the weight but not the values"
            " that train; make it after sft.convert, from model.parameters()",
            stacklevel=6,
        )
    warn_of_lost(held)
