"""What a `state_dict` of a converted model carries: its plan, in the metadata that torch keeps
beside the tensors.

No key is added for it. `torch.save` keeps the metadata, formats of tensors alone (safetensors) do
not; where it is there, `values` of another plan are refused by it, and everywhere else by what the
checkpoint itself knows: the entries of its weight that are selected are its values.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .nn.loading import check_loaded
from .nn.selected import Selected
from .plan import ALL, Plan, describe, selection_of

_CARRIED = (  # on the converted model: what goes into its metadata, and the hooks
    "_sparse_ft_carried"
)
_KEY = "sparse_ft"  # in the metadata


def attach(model: nn.Module, plan: Plan, values_dtype: torch.dtype | None) -> None:
    """From now on a `state_dict` of `model` carries `plan`, and one that does not fit is
    refused.
    """
    handles: list[Any] = []
    model.__dict__[_CARRIED] = plan, values_dtype, handles
    handles.append(model.register_state_dict_post_hook(_after_save))
    handles.append(model.register_load_state_dict_pre_hook(_before_load))


def detach(model: nn.Module) -> None:
    """Undo `attach`, as far as it got; called again, it does the rest."""
    _, _, handles = model.__dict__.get(_CARRIED, (None, None, ()))
    for handle in handles:
        handle.remove()
    model.__dict__.pop(_CARRIED, None)


def carried_by(state_dict: Mapping) -> tuple[Plan, torch.dtype | None] | None:
    """The plan and the values_dtype of the model that `state_dict` is of; None where it does not
    say.

    Raises ValueError where what it says is no plan.
    """
    return _read(getattr(state_dict, "_metadata", {}).get("", {}))


def _read(metadata: dict) -> tuple[Plan, torch.dtype | None] | None:
    saved = metadata.get(_KEY)
    if saved is None:
        return None
    try:
        plan = {name: _selection(what) for name, what in saved["plan"].items()}
        values_dtype = saved["values_dtype"]
        return Plan(plan), None if values_dtype is None else getattr(torch, values_dtype)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state_dict: its metadata holds a broken plan: {error}") from None


def _selection(what: Any) -> Any:
    return ALL if what == ALL else selection_of(what, what["index"])


def selected_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, Selected]]:
    """(prefix of its keys in a state_dict, module) of each selective module, by each of
    its names.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Selected):
            yield f"{prefix}{name}." if name else prefix, module


def _after_save(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any]
) -> None:
    if _CARRIED not in model.__dict__:  # the hook of an `attach` that was interrupted
        return
    plan, values_dtype, _ = model.__dict__[_CARRIED]
    described = {
        name: ALL if what == ALL else {**describe(what), "index": what.index}
        for name, what in plan.items()
    }
    dtype = None if values_dtype is None else str(values_dtype).removeprefix("torch.")
    metadata[_KEY] = {"plan": described, "values_dtype": dtype}


def _before_load(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    """Look at all that concerns selections before any of it is loaded. Raises RuntimeError."""
    saved = _read(metadata)
    plan: Mapping[str, Any] = {} if saved is None else saved[0]
    for of_module, module in selected_modules(model, prefix):
        _, key = module._keys(of_module)
        state = module._sparse_ft_state
        if key in state_dict and plan.get(state.label, state.selection) != state.selection:
            raise RuntimeError(
                f"state_dict: its {key!r} belong to another selection ({plan[state.label]!r})"
                f" than the one that trains here ({state.selection!r}). Convert with the plan that"
                " it was made under: sft.load(model, state_dict) does, for a model that is not"
                f" converted. Or leave {key!r} out to load the weight alone."
            )
        check_loaded(module, state_dict, of_module)
