"""Converted modules whose parameters FSDP2 (`fully_shard`) has taken over.

It puts two kinds of parameters in the place of those that `sft.convert` made: the shards (DTensors,
which optimisers hold), and in forward and backward what was gathered from them. The shards are what
a module remembers; what is gathered shows the values already.
"""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..parallel.dtensors import is_sharded_tensor, local_of
from ..parallel.shards import Shards, write
from .state import NAME

if TYPE_CHECKING:
    from .selected import Selected

REPLICAS = (
    "its values are outside of fully_shard (ignored_params, or a part of the model that is not"
    " wrapped), so each rank would train its own copy and nothing would tell; shard the whole"
    " model, and leave values out of ignored_params"
)


def values_of(module: Any) -> Any:
    """The values that an optimiser holds: the shards while FSDP2 shows what it gathered."""
    state = module.__dict__.get(NAME)
    shards = None if state is None else state.shards
    return module._parameters.get("values") if shards is None else shards.values


def take_shards(module: Any) -> bool:
    """Whether FSDP2 keeps the parameters of `module`; meets its shards where they are in place.

    Raises RuntimeError where it keeps one of weight and values only, ValueError for shards that are
    not supported.
    """
    values, weight = module._parameters.get("values"), module._weight_or_none()
    state = module._sparse_ft_state
    known = state.shards
    split = is_sharded_tensor(values), is_sharded_tensor(weight)
    if not any(split):
        return known is not None  # gathered
    if not all(split):
        why = (
            "its weight is outside of fully_shard (ignored_params) and its values are not; ignore"
            " neither"
        )
        raise RuntimeError(f"{state.label}: {why if split[0] else REPLICAS}")
    if known is not None:
        if values is known.values and weight is known.weight:
            return True
        if values.device_mesh != known.values.device_mesh:
            return True  # between forward and backward on a smaller mesh: reshard_after_forward=2
    shape = state.matrix_shape
    selection = state.selection.to(values.device)
    state.shards = Shards.of(state.label, weight, values, selection, shape)
    state.shown = state.suspected = state.held = None
    module._link(values)
    return True


def is_split(module: Any) -> bool:
    """Whether the shards of a module are in place, not what was gathered from them."""
    is_known = module._sparse_ft_state.shards is not None
    return is_known and is_sharded_tensor(module._weight_or_none())


def forget_shards(module: Any) -> None:
    """What is in place now is met anew."""
    module._sparse_ft_state.shards = None


def check_gathered(module: Any) -> None:
    """Raise RuntimeError where the own forward of a module would compute with shards."""
    shards = module._sparse_ft_state.shards
    if shards is not None and is_sharded_tensor(module._parameters.get("values")):
        raise RuntimeError(
            f"{shards.label}: its forward runs on DTensors: call it through the module that"
            " fully_shard wraps, which gathers them; tensor parallel (parallelize_module,"
            " distribute_module) comes before sft.convert"
        )


def show_shards(module: Any) -> None:
    """Write the values into this rank's part of the weight; on all ranks together."""
    shards = module._sparse_ft_state.shards
    if not is_sharded_tensor(module._parameters.get("values")):
        raise RuntimeError(
            f"{shards.label}: FSDP2 shows a gathered copy of it now, which a write to the shards"
            " would not reach; call reshard() on the model first"
        )
    write([shards])


def load_shards(module: Any, has_weight: bool, has_values: bool) -> None:
    """After a state_dict was loaded into the shards: let weight and values agree.

    Raises RuntimeError on every rank where values of another selection came with their weight.
    """
    if has_weight and not has_values:
        _leave_meta(module)
    shards = module._sparse_ft_state.shards
    if shards.is_on_meta():
        return
    with torch.no_grad():
        if has_weight and not has_values:
            return shards.read_()
        off = shards.differing() if has_weight else 0
    if off:
        raise RuntimeError(
            f"state_dict: {off} of {shards.values.numel()} values of {shards.label!r} are not what"
            " its weight holds at the entries that are selected here: it was made under another"
            " selection. Convert with the plan that it was made under, and load again."
        )
    show_shards(module)


def _leave_meta(module: Any) -> None:
    """Give memory to values that have none, where the weight that they are read from has some.

    A weight of their dtype is all that a state_dict holds of some parameters, and loading it with
    `assign=True` brings them no values.
    """
    values, weight = module._parameters["values"], module._weight()
    if not values.is_meta or weight.is_meta:
        return
    fresh = torch.empty_like(values, device=local_of(weight).device)
    module._parameters["values"] = nn.Parameter(fresh, values.requires_grad)
    module._takes_shards()


def meet_shards(modules: "Iterable[Selected]", models: Iterable[nn.Module]) -> None:
    """Meet the shards of all modules, before an optimiser steps them; raise RuntimeError for values
    that nobody shards.

    models: those that were converted.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or "torch.distributed.tensor" not in sys.modules:
        return
    for module in modules:
        module._takes_shards()
    for model in models:
        parts = list(model.modules())
        if any(isinstance(part, fsdp.FSDPModule) for part in parts):
            _check_all_sharded(parts)


def _check_all_sharded(parts: Iterable[Any]) -> None:
    for part in parts:
        state = part.__dict__.get(NAME)
        if state is None or state.selection is None or state.shards is not None:
            continue
        if not is_sharded_tensor(part._parameters.get("values")):
            raise RuntimeError(f"{state.label}: {REPLICAS}")
