"""InBackward: each parameter steps inside the backward that makes its gradient, which is gone
before the next one comes.
"""

import warnings
import weakref
from typing import Any

import torch
from torch import distributed

from ..nn.steps import owner_of
from ..parallel.dtensors import is_sharded_tensor


class InBackward:
    """The hooks of one optimiser on its parameters, and who has stepped since its last `step()`.

    A hook runs once a backward, when every use of the parameter has been differentiated: those that
    saved its weight are among them, so that the weight may be written. A use that the parameter's
    gradient does not pass through (of a weight from `named_parameters()`) has saved an older
    version, and autograd says so.
    """

    def __init__(self, optimizer: Any) -> None:
        # Parameters hold the hooks, the optimiser the parameters.
        self._optimizer = weakref.ref(optimizer)
        # {id of a parameter: number of its group, whose settings are read at each step}
        self._group: dict[int, int] = {}
        self._hooks: dict[int, Any] = {}  # {id of a parameter: handle of its hook}
        # Ids of those that stepped: since the last step(), between the two before, and in
        # backwards which step() did not follow.
        self._stepped: set[int] = set()
        self.reached: set[int] = set()
        self._left: set[int] = set()
        self._warned = False
        weakref.finalize(optimizer, _remove, self._hooks).atexit = False

    def _alive(self) -> Any:
        """The optimiser, for its own calls."""
        return self._optimizer()

    def attach(self, start: int = 0) -> None:
        """Hook the parameters of the groups from number `start` on, those that have no hook yet."""
        for number, group in enumerate(self._alive().param_groups[start:], start):
            for p in group["params"]:
                self._group[id(p)] = number
                if p.requires_grad and id(p) not in self._hooks:
                    self._hooks[id(p)] = p.register_post_accumulate_grad_hook(self._step)

    def detach(self, p: torch.Tensor) -> None:
        """Take the hook of a parameter that is in no group any more."""
        self._group.pop(id(p), None)
        hook = self._hooks.pop(id(p), None)
        if hook is not None:
            hook.remove()

    @torch.compiler.disable
    @torch.no_grad()
    def _step(self, p: torch.Tensor) -> None:
        optimizer = self._optimizer()
        if optimizer is None:
            return
        if hasattr(p, "grad_sample"):
            raise RuntimeError(
                f"{self._name(optimizer, p)}: Opacus clips and noises gradients after the backward,"
                " and this optimiser steps within it; make it without in_backward=True"
            )
        if p.grad is None:
            raise RuntimeError(
                f"{self._name(optimizer, p)}: another optimiser with in_backward=True has taken its"
                " gradient; keep one of them"
            )
        if (
            distributed.is_available()
            and distributed.is_initialized()
            and distributed.get_world_size() > 1
        ):
            raise RuntimeError(
                "in_backward: each process would step on its own gradient, before it is averaged"
                " with those of the others; use in_backward=False"
            )
        if id(p) in self._stepped:
            p.grad = None
            raise RuntimeError(
                f"{self._name(optimizer, p)}: a second gradient before optimizer.step(), and it has"
                " stepped on the first one. With in_backward=True gradients do not accumulate: one"
                " backward, then one optimizer.step(); a layer that is used in several reentrant"
                " checkpoints gets one gradient in each (use_reentrant=False gives one in all)."
                " After a backward that failed, optimizer.zero_grad() lets the next one begin"
            )
        self._stepped.add(id(p))
        optimizer._step_one(p, optimizer.param_groups[self._group[id(p)]])
        p.grad = None

    def finish(self) -> None:
        """What is left for `step()`: the backward is over. Raises RuntimeError where its steps were
        not what was meant.
        """
        optimizer, self.reached = self._alive(), self._stepped | self._left
        self._stepped, self._left = set(), set()
        scaled = [
            optimizer.__dict__.pop(name, None) is not None for name in ("grad_scale", "found_inf")
        ]
        if any(scaled):
            raise RuntimeError(
                "grad_scale: with in_backward=True parameters have stepped on the scaled gradients"
                " already, and a GradScaler decides when all of them are known; use"
                " in_backward=False, or bfloat16 without a scaler"
            )
        left = [
            p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if left:
            raise RuntimeError(
                f"{self._name(optimizer, left[0])}: it has a gradient that no backward gave it"
                " since it is known here (set by hand, or frozen when the optimiser was made);"
                " with in_backward=True step() does not look at gradients"
            )

    def leave_behind(self) -> None:
        """Begin anew after a backward that `step()` did not follow. Warns once: what has stepped in
        it cannot be undone.
        """
        stepped, self._stepped = self._stepped, set()
        self._left |= stepped
        if stepped and not self._warned:
            self._warned = True
            warnings.warn(
                f"in_backward: {len(stepped)} parameters have stepped in a backward that"
                " optimizer.step() did not follow (it failed, or its gradients were to be"
                " dropped); they keep that step, and training goes on from here",
                stacklevel=3,
            )

    def _name(self, optimizer: Any, p: torch.Tensor) -> str:
        group = optimizer.param_groups[self._group[id(p)]]
        return name_of(group, next(i for i, q in enumerate(group["params"]) if q is p))


def check_steps_in_backward(p: torch.Tensor, name: str) -> None:
    """Raise ValueError for a parameter, `name` in messages, whose gradient comes later."""
    if is_sharded_tensor(p):
        raise ValueError(
            f"in_backward: {name} is split over the ranks (fully_shard), and its gradient comes"
            " after its backward; use in_backward=False"
        )


def name_of(group: dict[str, Any], i: int) -> str:
    """How to call parameter number i of a parameter group in a message."""
    p, names = group["params"][i], group.get("param_names")
    owner = owner_of(p)
    return (
        names[i]
        if names
        else (
            owner._sparse_ft_state.label
            if owner is not None
            else f"parameter of shape {tuple(p.shape)}"
        )
    )


def _remove(hooks: dict[int, Any]) -> None:
    for handle in hooks.values():
        handle.remove()
