"""Converted modules whose parameters FSDP2 (`fully_shard`) has taken over.

It puts two kinds of parameters in the place of those that `sft.convert` made: the shards (DTensors,
which optimisers hold), and in forward and backward what was gathered from them. The shards are what
a module remembers; what is gathered shows the values already.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..parallel.dtensors import is_sharded_tensor, local_of
from ..parallel.shards import Shards, write
from .state import NAME

# The ways out of what is not supported.
BEFORE = "do it before fully_shard"
WHOLE = (
    "get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) of"
    " torch.distributed.checkpoint.state_dict is the trained model, for a copy that is not split"
)
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


def is_gathered(module: Any) -> bool:
    """Whether a module whose shards are known shows what was gathered from them."""
    return not is_sharded_tensor(module._parameters.get("values"))


def hide_gathered(models: Iterable[nn.Module], modules: Iterable[nn.Module]) -> None:
    """Let the next forward gather anew, after a step: `set_reshard_after_backward(False)`, or a
    forward between the backward and the step, leaves copies in place that know nothing of it.
    """
    fsdp = sys.modules["torch.distributed.fsdp"]
    stale = {id(module) for module in modules}
    for model in models:
        if any(id(part) in stale for part in model.modules()):
            for part in model.modules():
                if isinstance(part, fsdp.FSDPModule):
                    part.reshard()


def forget_shards(module: Any) -> None:
    """What is in place now is met anew."""
    module._sparse_ft_state.shards = None


def refuse_sharded(model: nn.Module, way_out: str) -> None:
    """Raise ValueError where FSDP2 has split `model` over the ranks."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for name, part in model.named_modules():
        if isinstance(part, fsdp.FSDPModule):
            where = f"its {name!r}" if name else "it"
            raise ValueError(
                f"model: {where} is split over the ranks by FSDP2 (fully_shard), which is not"
                f" supported here; {way_out}"
            )


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


def meet_shards(models: Iterable[nn.Module], parameters: Iterable[torch.Tensor]) -> None:
    """Meet the shards of those of the converted `models` that an optimiser of `parameters` trains,
    before it steps; raise RuntimeError for values that nobody shards.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or "torch.distributed.tensor" not in sys.modules:
        return
    held = {id(parameter) for parameter in parameters}
    for model in models:
        groups = [part for part in model.modules() if isinstance(part, fsdp.FSDPModule)]
        if groups and any(id(parameter) in held for parameter in model.parameters()):
            _meet(model.modules())
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            for group in groups:
                _check_dtype(_own_parameters(group, fsdp.FSDPModule), names)


def _own_parameters(group: nn.Module, kind: type) -> Iterator[nn.Parameter]:
    """Those that FSDP2 gathers together: of a module, but for modules in it that are groups."""
    yield from group.parameters(recurse=False)
    for child in group.children():
        if not isinstance(child, kind):
            yield from _own_parameters(child, kind)


def _check_dtype(parameters: Iterable[nn.Parameter], names: dict[int, str]) -> None:
    """Raise ValueError for gradients that FSDP2 does not reduce together."""
    first: dict[torch.dtype, str] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            first.setdefault(parameter.dtype, names[id(parameter)])
    if len(first) > 1:
        told = ", ".join(f"{name!r} in {dtype}" for dtype, name in first.items())
        raise ValueError(
            f"model: {told} train in one group of fully_shard, which takes one dtype; give values"
            " the dtype of the weights (sft.convert's values_dtype), or select all entries of what"
            " trains whole, which gives it fp32 values, too"
        )


def _meet(parts: Iterable[Any]) -> None:
    for part in parts:
        state = part.__dict__.get(NAME)
        if state is None or state.selection is None:
            continue
        is_met = part._takes_shards() or is_sharded_tensor(part._parameters.get("values"))
        if not is_met:
            raise RuntimeError(f"{state.label}: {REPLICAS}")
