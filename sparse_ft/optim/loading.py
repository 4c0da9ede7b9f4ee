"""What a SelectiveAdamW takes of a state_dict: all of it is looked at before any of it
is loaded.
"""

import math
from typing import Any

import torch

from ..nn.steps import owner_of
from .ages import ages_in
from .in_backward import name_of
from .settings import SETTINGS
from .storage import Storage

SELECTIONS = "selections"  # in the groups of a state_dict


class Exactly:
    """A loaded tensor on its way through `Optimizer.load_state_dict`, which casts bare ones to the
    dtype of their parameter.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def unboxed(state: dict) -> None:
    """The loaded tensors themselves."""
    for of_one in state.values():
        for name, what in of_one.items():
            if isinstance(what, Exactly):
                of_one[name] = what.tensor


def boxed(optimizer: torch.optim.Optimizer, state_dict: dict, storage: Storage) -> dict:
    """`state_dict` for `Optimizer.load_state_dict`, with tensors that keep their dtypes there.

    storage: how `optimizer` stores state. Raises ValueError or TypeError that names the parameter
    and what is wrong with its state, or the setting that a group lacks; nothing is loaded then.
    """
    saved, own = state_dict["param_groups"], optimizer.param_groups
    counts = [len(group["params"]) for group in saved], [len(group["params"]) for group in own]
    if counts[0] != counts[1]:
        raise ValueError(
            f"state_dict: its groups have {counts[0]} parameters, and this optimiser's {counts[1]};"
            " it is of another model, plan or no_decay"
        )
    for pair in zip(saved, own):
        _check_selections(*pair)
    groups = [
        _group(number, *pair, optimizer.defaults) for number, pair in enumerate(zip(saved, own))
    ]
    state = dict(state_dict["state"])
    places = {
        number: (group, i) for group, of in zip(own, saved) for i, number in enumerate(of["params"])
    }
    for number in state:
        if number not in places:
            raise ValueError(
                f"state_dict: it holds state of parameter {number!r}, which none of its groups has"
            )
    for number, (group, i) in places.items():
        if state.get(number):
            state[number] = _boxed(state[number], group["params"][i], name_of(group, i), storage)
    return {**state_dict, "state": state, "param_groups": groups}


def name_selections(groups: list[dict], saved: list[dict]) -> None:
    """Let the groups of a state_dict hold digests of what is selected."""
    for own, group in zip(groups, saved):
        selections = selections_of(own)
        if any(selections):
            group[SELECTIONS] = selections


def selections_of(group: dict) -> list[str | None]:
    """A digest of the selection of each parameter of a group; None for one that trains whole."""
    owners = [owner_of(p) for p in group["params"]]
    return [None if owner is None else owner._sparse_ft_state.selection.digest for owner in owners]


def _check_selections(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """State of another selection of the same size would go to entries that it is not of."""
    there = saved.get(SELECTIONS)
    if there is None:  # saved by another optimiser, or nothing was selected
        return
    for i, (theirs, ours) in enumerate(zip(there, selections_of(own))):
        if theirs is not None and ours is not None and theirs != ours:
            raise ValueError(
                f"state_dict: {name_of(own, i)}: its state is of another selection than the one"
                " that trains here; convert with the plan that it was made under (sft.load,"
                " Plan.load)"
            )


def _group(
    number: int, saved: dict[str, Any], own: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    for name in SETTINGS:
        if name not in saved:
            raise ValueError(
                f"state_dict: its group {number} has no {name!r}; was it saved by another kind of"
                " optimiser?"
            )
    if saved.get("amsgrad"):
        raise ValueError(
            f"state_dict: its group {number} has amsgrad=True, which SelectiveAdamW does not do"
        )
    settings = {name: own.get(name, default) for name, default in defaults.items()} | saved
    settings.pop(SELECTIONS, None)
    return settings


def _boxed(
    loaded: dict[str, Any], p: torch.Tensor, name: str, storage: Storage
) -> dict[str, Exactly]:
    dtypes = storage.format_of(p).dtypes(p)
    for what in loaded.keys() - dtypes.keys() - {"step", "generation", "births"}:
        raise ValueError(f"state_dict: {name}: it holds {what!r}, which {storage} does not keep")
    boxed = {"step": Exactly(_step(loaded.get("step"), p, name))}
    for what, dtype in dtypes.items():
        if what == "correction" and what not in loaded:  # of a run without: values are all there is
            boxed[what] = Exactly(torch.zeros_like(p, dtype=dtype))
        else:
            boxed[what] = Exactly(_tensor(loaded, what, dtype, p, name, storage))
    if "generation" in loaded or "births" in loaded:
        generation, births = ages_in(loaded, p, name)
        boxed["generation"], boxed["births"] = Exactly(generation), Exactly(births)
    return boxed


def _step(step: Any, p: torch.Tensor, name: str) -> torch.Tensor:
    """The number of steps taken, as a tensor: float32, one element."""
    if isinstance(step, (int, float)):
        step = torch.tensor(float(step), device="cpu")
    if not isinstance(step, torch.Tensor) or step.numel() != 1:
        raise ValueError(f"state_dict: {name}: its step is {_kind(step)}, expected one number")
    count = float(step)
    if not math.isfinite(count) or count < 0:
        raise ValueError(
            f"state_dict: {name}: its step is {count}, expected a number of at least 0"
        )
    return step.to(p.device, torch.float32).reshape(())


def _tensor(
    loaded: dict[str, Any],
    what: str,
    dtype: torch.dtype,
    p: torch.Tensor,
    name: str,
    storage: Storage,
) -> torch.Tensor:
    tensor = loaded.get(what)
    shape = storage.format_of(p).shape(what, p)
    if tensor is None:
        raise ValueError(
            f"state_dict: {name}: its {what} is missing; {storage} keeps one of shape {shape}"
        )
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise TypeError(
            f"state_dict: {name}: its {what} is {_kind(tensor)}, expected a dense tensor"
        )
    is_like = tensor.is_floating_point() if dtype.is_floating_point else tensor.dtype == dtype
    if not is_like:
        raise ValueError(
            f"state_dict: {name}: its {what} is {tensor.dtype}, and {storage} keeps {dtype}"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"state_dict: {name}: its {what} has shape {tuple(tensor.shape)}, expected {shape}"
        )
    tensor = tensor.to(p.device, dtype)
    if tensor.shape != p.shape or tensor.stride() == p.stride():
        return tensor
    # in the order in which the parameter lies in memory
    return torch.empty_like(p, dtype=dtype).copy_(tensor)


def _kind(what: Any) -> str:
    if isinstance(what, torch.Tensor):
        return f"a {what.layout} tensor of shape {tuple(what.shape)}"
    return "missing" if what is None else repr(what)
