"""What a `state_dict` of a converted model carries: its plan, in the metadata that torch keeps
beside the tensors.

No key is added for it. `torch.save` keeps the metadata, formats of tensors alone (safetensors) do
not; where it is there, `values` of another plan are refused by it, and everywhere else by what the
checkpoint itself knows: the entries of its weight that are selected are its values.
"""

import functools
import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from .adapters import allow_adapters, refuse_adapters
from .nn.foreign import MERGE, refuse_quantised
from .nn.left import Left, check_left
from .nn.loading import check_loaded
from .nn.origin import origins_in
from .nn.selected import Selected
from .nn.sharded import WHOLE, refuse_sharded
from .plan import ALL, Plan, describe, selection_of

_CARRIED = (  # on the converted model: what goes into its metadata, and the hooks
    "_sparse_ft_carried"
)
_KEY = "sparse_ft"  # in the metadata
_SAVE = "save_pretrained"  # of Hugging Face's models


class Carried(NamedTuple):
    """What a `state_dict` says of how its model was converted."""

    plan: Plan
    values_dtype: torch.dtype | None
    origin: bool


def attach(model: nn.Module, plan: Plan, values_dtype: torch.dtype | None, origin: bool) -> None:
    """From now on a `state_dict` of `model` carries `plan`, and one that does not fit is
    refused.
    """
    handles: list[Any] = []
    model.__dict__[_CARRIED] = Carried(plan, values_dtype, origin), handles
    handles.append(model.register_state_dict_post_hook(_after_save))
    handles.append(model.register_load_state_dict_pre_hook(_before_load))
    refuse_adapters(model)
    if hasattr(type(model), _SAVE):
        model.__dict__[_SAVE] = functools.partial(_save_plain, model)


def carry(model: nn.Module, plan: Plan) -> None:
    """From now on it is `plan` that a `state_dict` of `model` carries."""
    carried, handles = model.__dict__[_CARRIED]
    model.__dict__[_CARRIED] = carried._replace(plan=plan), handles


def detach(model: nn.Module) -> None:
    """Undo `attach`, as far as it got; called again, it does the rest."""
    _, handles = model.__dict__.get(_CARRIED, (None, ()))
    for handle in handles:
        handle.remove()
    allow_adapters(model)
    model.__dict__.pop(_SAVE, None)
    model.__dict__.pop(_CARRIED, None)


def _save_plain(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained` of a converted model: the original keys, holding the trained weights.

    Values that are wider than their weight are saved as the weight shows them, with a warning.
    """
    kind: Any = type(model)
    save = kind.save_pretrained
    call = inspect.signature(save).bind(model, *args, **kwargs)
    state = call.arguments.get("state_dict")
    if state is None:
        refuse_sharded(model, f"pass state_dict=: {WHOLE}")
    state = dict(model.state_dict() if state is None else state)
    wider = []
    for prefix, module in selected_modules(model):
        refuse_quantised("save_pretrained", module, MERGE)
        name, values = module._keys(prefix)
        state.pop(values, None)
        if module._parameters["values"].dtype != module._weight().dtype:
            wider.append(name)
    for key in extra_keys(model):
        state.pop(key, None)
    if wider:
        warnings.warn(
            f"save_pretrained: {len(wider)} weights ({wider[0]} …) are saved in their own dtype,"
            " which rounds the values that train; to go on training bit for bit, save"
            " model.state_dict() too, or let sparse_ft.trainers.SparseCallback make checkpoints",
            stacklevel=2,
        )
    kwargs = {key: value for key, value in call.arguments.items() if key not in ("self", "kwargs")}
    return save(model, **{**kwargs, **call.arguments.get("kwargs", {}), "state_dict": state})


def carried_by(state_dict: Mapping) -> Carried | None:
    """How the model was converted that `state_dict` is of; None where it does not say.

    Raises ValueError where what it says is no plan.
    """
    return _read(getattr(state_dict, "_metadata", {}).get("", {}))


def _read(metadata: dict) -> Carried | None:
    saved = metadata.get(_KEY)
    if saved is None:
        return None
    try:
        plan = {name: _selection(what) for name, what in saved["plan"].items()}
        name = saved["values_dtype"]
        values_dtype = None if name is None else getattr(torch, name)
        return Carried(Plan(plan), values_dtype, bool(saved.get("origin", False)))
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
    carried, _ = model.__dict__[_CARRIED]
    described = {
        name: ALL if what == ALL else {**describe(what), "index": what.index}
        for name, what in carried.plan.items()
    }
    dtype = carried.values_dtype
    metadata[_KEY] = {
        "plan": described,
        "values_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "origin": carried.origin,
    }
    for known, _ in origins_in(model):
        state_dict[origin_key(known.label, prefix)] = known.origin
    for _, module in selected_modules(model):
        state = module._sparse_ft_state
        if state.left is None:
            continue
        state_dict[left_key(state.label, prefix)] = state.left.positions
        if state.left.origin is not None:
            state_dict[left_origin_key(state.label, prefix)] = state.left.origin


def _before_load(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    """Look at all that concerns selections before any of it is loaded. Raises RuntimeError."""
    saved = _read(metadata)
    known: Mapping[str, Any] = {} if saved is None else saved.plan
    for of_module, module in selected_modules(model, prefix):
        _weight, key = module._keys(of_module)
        state = module._sparse_ft_state
        if key in state_dict and known.get(state.label, state.selection) != state.selection:
            raise RuntimeError(
                f"state_dict: its {key!r} belong to another selection ({known[state.label]!r})"
                f" than the one that trains here ({state.selection!r}). Convert with the plan that"
                " it was made under: sft.load(model, state_dict) does, for a model that is not"
                f" converted. Or leave {key!r} out to load the weight alone."
            )
        check_loaded(module, state_dict, of_module)
    lefts = _lefts_of(model, state_dict, prefix, is_told=saved is not None)
    _load_origins(model, state_dict, prefix)
    for state, left in lefts:
        state.left = left
        state_dict.pop(left_key(state.label, prefix), None)
        state_dict.pop(left_origin_key(state.label, prefix), None)


def origin_key(name: str, prefix: str = "") -> str:
    """Where a state_dict holds the origin of the parameter `name` of a plan."""
    return f"{prefix}{name}_origin"


def left_key(name: str, prefix: str = "") -> str:
    """Where it holds the flat positions of entries that have left the selection of `name`."""
    return f"{prefix}{name}_left"


def left_origin_key(name: str, prefix: str = "") -> str:
    """Where it holds what these were before they trained, if that was kept."""
    return f"{prefix}{name}_left_origin"


def left_keys(model: nn.Module) -> set[str]:
    """The keys that a state_dict of a converted model has where entries have left a selection."""
    names = [module._sparse_ft_state.label for _, module in selected_modules(model)]
    return {key(name) for name in names for key in (left_key, left_origin_key)}


def extra_keys(model: nn.Module) -> set[str]:
    """The keys that it may have and that no parameter and no buffer has."""
    return {origin_key(known.label) for known, _ in origins_in(model)} | left_keys(model)


def _lefts_of(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, is_told: bool
) -> list[tuple[Any, Left | None]]:
    """[(state of a module, the entries that had left its selection)], checked, nothing loaded.

    is_told: whether the state_dict tells its plan. One that does not, and has nothing of them
    either, says nothing of these entries.
    """
    found: list[tuple[Any, Left | None]] = []
    for _, module in selected_modules(model):
        state = module._sparse_ft_state
        key = left_key(state.label, prefix)
        positions = state_dict.get(key)
        if positions is None:
            if is_told or origin_key(state.label, prefix) in state_dict:
                found.append((state, None))
            continue
        origin = state_dict.get(left_origin_key(state.label, prefix))
        weight = module._weight()
        check_left(key, positions, origin, weight.numel())
        left = Left(
            positions.to(weight.device, copy=True),
            None if origin is None else origin.to(weight.device, weight.dtype, copy=True),
        )
        found.append((state, left))
    return found


def _load_origins(model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Take the origins out of a state_dict. Those that are not in it stay as they are."""
    loaded = []
    for known, _ in origins_in(model):
        key, origin = origin_key(known.label, prefix), known.origin
        there = state_dict.get(key)
        if there is None:
            continue
        if there.shape != origin.shape:
            raise RuntimeError(
                f"state_dict: {key!r} has shape {tuple(there.shape)}, expected"
                f" {tuple(origin.shape)}"
            )
        loaded.append((key, origin, there))
    for key, origin, there in loaded:
        origin.copy_(there)
        del state_dict[key]
