"""load and state_dict: checkpoints that bring their plan along, and checkpoints that know nothing
of this library.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .carried import carried_by, extra_keys, left_keys, origin_key, selected_modules
from .conversion import convert, unconvert
from .converted import record_of, summary
from .messages import check_module, described
from .nn.foreign import MERGE, refuse_quantised
from .report import Report


def state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """`model.state_dict()` as if nothing had been converted: the original keys, holding the trained
    weights.

    For `save_pretrained(folder, state_dict=sft.state_dict(model))`, safetensors, and models without
    selections. The tensors are the model's own, as in torch's. fp32 values over 16-bit weights are
    not in it: to go on training from it bit for bit, save `model.state_dict()`, which `sft.load`
    takes.
    """
    check_module("model", model)
    for _, module in selected_modules(model):
        refuse_quantised("model", module, MERGE)
    state = model.state_dict()
    for prefix, module in selected_modules(model):
        state.pop(module._keys(prefix)[1], None)
    for key in extra_keys(model):
        state.pop(key, None)
    for metadata in getattr(state, "_metadata", {}).values():
        metadata.pop("sparse_ft", None)
    return state


def load(
    model: nn.Module, state_dict: Mapping[str, torch.Tensor], process_group: Any = None
) -> Report:
    """Load a checkpoint and what it says of the plan it was made under: converts `model` first if
    it is not converted.

    state_dict: what `model.state_dict()` gave, through `torch.save` and `torch.load` or not; it
    carries the plan and values_dtype. One without a plan (weights alone, or a file of tensors
    alone) is loaded into the model as it is: values are gathered from weights where they do not
    come along.
    process_group: as in `sft.convert`; False where this process loads alone.
    Make the optimiser afterwards: what trains are new Parameters. Returns what trains.

    Raises ValueError for a model that is converted with another plan, RuntimeError for missing,
    unexpected or misshapen tensors; the model is left as it was.
    """
    check_module("model", model)
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict: expected a mapping of names to tensors, got {described(state_dict)};"
            " torch.load a file first"
        )
    carried, record = carried_by(state_dict), record_of(model)
    if carried is None and record is None:
        warnings.warn(
            "state_dict: there is no plan in it (sft.state_dict leaves it out, model.state_dict()"
            " has it), so the model is not converted and trains as it did; sft.convert it for a"
            " selection to train",
            stacklevel=2,
        )
    convert_first = carried is not None and record is None
    if carried is not None and record is None:
        convert(
            model,
            carried.plan,
            values_dtype=carried.values_dtype,
            process_group=process_group,
            origin=carried.origin,
        )
    elif carried is not None and record is not None and record.plan != carried.plan:
        raise ValueError(
            "model: converted with another plan than the checkpoint's; call sft.revert(model), then"
            " sft.load, then make the optimiser"
        )
    try:
        _check(model, state_dict)
        model.load_state_dict(state_dict)
    except BaseException:
        if convert_first:
            unconvert(model)
        raise
    return summary(model)


def _check(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Raise RuntimeError unless each tensor has its place: torch says so too, when it has loaded
    the others.
    """
    lefts = left_keys(model)  # however many there were: looked at where they are loaded
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in lefts}
    optional = {module._keys(prefix)[1] for prefix, module in selected_modules(model)}
    optional |= extra_keys(model)
    wrong = [
        f"{name!r} is missing" for name in own if name not in state_dict and name not in optional
    ]
    unexpected = [name for name in state_dict if name not in own and name not in optional]
    wrong += [f"{name!r} has no place in the model" for name in unexpected]
    for name, tensor in own.items():
        there = state_dict.get(name)
        if (
            isinstance(tensor, torch.Tensor)
            and isinstance(there, torch.Tensor)
            and there.shape != tensor.shape
        ):
            wrong.append(f"{name!r} has shape {tuple(there.shape)}, expected {tuple(tensor.shape)}")
    if any(name.endswith("values") for name in unexpected):
        wrong[-1] += (
            " (values of a plan that it does not carry? convert with that plan first: Plan.load)"
        )
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        if any(name.endswith(origin_key("")) for name in unexpected):
            more += " (its model kept origins: convert with origin=True first)"
        raise RuntimeError(f"state_dict: {'; '.join(wrong[:3])}{more}; nothing was loaded")
