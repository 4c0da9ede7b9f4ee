"""A model that is converted: the record of it, what trains in it, and its weights showing their
values.
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from .lean_modules import is_lean, selected_channels
from .messages import check_module
from .nn.alias import SelectedParameter
from .nn.linear import Adopted
from .nn.lost import LOST, lost_from
from .nn.origin import origins_in
from .nn.selected import Selected
from .nn.state import RECORD
from .nn.tied import home_of, is_tied
from .plan import ALL, Plan
from .quantised.module import Quantised, shape_of
from .reparametrised import Reparametrised
from .report import Report, Row


class Record(NamedTuple):
    """How a model was converted. flags: the requires_grad of its parameters before."""

    plan: Plan
    flags: dict[str, bool]
    values_dtype: torch.dtype | None
    origin: bool = False


def record_of(model: nn.Module) -> Record | None:
    """The record of a converted model; None of any other module, TypeError for all else."""
    check_module("model", model)
    return model.__dict__.get(RECORD)


def converted_part(model: nn.Module) -> str:
    """For a message: which module inside of `model`, a wrapper, was converted; "" for none."""
    for name, part in model.named_modules():
        if name and RECORD in part.__dict__:
            return f"; its {name!r} was, so call it on that module"
    return ""


def holders_of(model: nn.Module) -> dict[str, Selected]:
    """{parameter name: the module that owns its values} of what trains selected entries."""
    return {
        module._sparse_ft_state.label: module
        for module in model.modules()
        if isinstance(module, Selected) and module._sparse_ft_state.selection is not None
    }


def sync(model: nn.Module) -> nn.Module:
    """Make every weight of `model` show its values. Needed only after writes that leave no trace:
    bare `.data` edits, `vector_to_parameters`, swapping an EMA in. Returns the model."""
    check_module("model", model)
    for module in model.modules():
        if isinstance(module, Selected):
            module.sync(force=True)
    return model


def summary(model: nn.Module) -> Report:
    """What trains in `model`: a `Report`, which prints as a table (trainable / total, layer by
    layer).
    """
    record = record_of(model)
    return report_of(model, record.plan if record else None)


def selected_in(plan: Plan) -> list[str]:
    """The parameters of which a selection trains."""
    return [name for name, what in plan.items() if what != ALL]


def report_of(model: nn.Module, plan: Plan | None, lean: object = None) -> Report:
    """What trains in `model`. lean: the `LeanReport` that belongs to it."""
    lost = [] if plan is None else lost_from(model, selected_in(plan))
    rows, seen = [], set()
    for prefix, module in model.named_modules():
        if isinstance(module, SelectedParameter):
            continue
        for attribute, parameter in module._parameters.items():
            is_counted = attribute == "values" and isinstance(module, Adopted)  # by its weight
            if parameter is None or is_counted or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            name = f"{prefix}.{attribute}".lstrip(".")
            row = _row(name, module, attribute, parameter, plan is not None)
            rows.append(row._replace(how=f"LOST: {LOST}") if name in lost else row)
    kept = [known.origin for known, _ in origins_in(model)]
    return Report(rows, lean, lost, sum(origin.nbytes for origin in kept))


def _row(
    name: str, module: nn.Module, attribute: str, parameter: nn.Parameter, has_plan: bool
) -> Row:
    shape, total = tuple(parameter.shape), parameter.numel()
    packed = shape_of(module) if attribute == "weight" else None
    if packed is not None:
        shape, total = packed, packed[0] * packed[1]
    holder = _holder(module, attribute)
    if holder is not None:
        state = holder._sparse_ft_state
        trainable = state.selection.nnz(state.matrix_shape)
        how = _how(module, attribute, holder)
        return Row(name, shape, total, trainable, state.selection.kind, how)
    if isinstance(module, Reparametrised):
        trainable = total if parameter.requires_grad else 0
        return Row(name, shape, total, trainable, "all" * bool(trainable), module.how())
    if parameter.requires_grad:
        return Row(name, shape, total, total, "all", "trains whole")
    why = "frozen: not in the plan" if has_plan else "frozen"
    return Row(name, shape, total, 0, "", why)


def _holder(module: nn.Module, attribute: str) -> Any:
    """Who holds the values of a parameter; None where it has none."""
    if isinstance(module, Adopted) and attribute == "weight":
        return module
    if is_tied(module) and attribute == "weight":
        return home_of(module)
    return module._modules.get(f"{attribute}_selected")


def _how(module: nn.Module, attribute: str, holder: Selected) -> str:
    """What serves a selected parameter."""
    if isinstance(holder, Quantised):
        return f"{type(holder).__name__}: {holder.quantiser.name}"
    if isinstance(holder, Adopted):
        tied = holder._sparse_ft_state.tied
        return type(holder).__name__ + (f", tied: {', '.join(tied)}" if tied else "")
    is_weight = attribute == "weight"
    if is_weight and is_lean(module) and selected_channels(module) is not None:
        return "lean convolution"
    if isinstance(holder, SelectedParameter) and holder.by_experts:
        return "experts: each one's gradient by itself"
    return "alias: dense gradient, transient"
