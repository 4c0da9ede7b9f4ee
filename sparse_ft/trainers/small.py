"""Small states: of a converted model only what training changes, and what tells where it belongs.

A small state is what `load_state_dict` takes: the values in their own dtype, the parameters that
train whole, the buffers. One more key, `sparse_ft_trained`, holds a JSON document with a digest of
each selection and fingerprints of the base. `expect` lets a model look at it before anything is
loaded, and not miss what is not in there.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..carried import selected_modules
from ..converted import record_of
from ..deltas import Delta
from ..plan import ALL

KEY = "sparse_ft_trained"
_EXPECTS = "_sparse_ft_expects_small"  # on a model that `expect` knows: the prefix it is loaded by


def converted_in(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(prefix of its keys, module) of each module of `model` that `sft.convert` was called on."""
    for name, module in model.named_modules():
        if record_of(module) is not None:
            yield f"{name}." if name else "", module


def small_state(
    model: nn.Module, state: Mapping[str, torch.Tensor], delta: Delta, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """What of `state` training changes, and the document.

    model: converted. state: a state_dict of it, or of a module that holds it; prefix: of its keys.
    delta: of the model as it is. What is not of `model` stays in. All of it stays, with a warning,
    where a reselection has left trained entries in weights that a run begins without.
    """
    left = has_left(model)
    if left:
        warnings.warn(
            f"{left[0]} ({len(left)} in all): sft.reselect(dropped='keep') left trained entries in"
            " weights, so checkpoints hold the whole model; dropped='restore' keeps them small",
            stacklevel=2,
        )
        return dict(state)
    kept = dict(state)
    changing = _changing(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in changing:
            kept.pop(prefix + name, None)
    for at, module in selected_modules(model):
        _, values = module._keys(at)
        kept[prefix + values] = module._parameters["values"].detach()
    kept[prefix + KEY] = _document(model, delta)
    return kept


def has_left(model: nn.Module) -> list[str]:
    """The weights with entries that have trained and are not selected any more."""
    states = [module._sparse_ft_state for _, module in selected_modules(model)]
    return [state.label for state in states if state.left is not None]


def _changing(model: nn.Module) -> set[int]:
    """ids of the parameters that train."""
    weights = {id(module._weight()) for _, module in selected_modules(model)}
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return own - weights


def _document(model: nn.Module, delta: Delta) -> torch.Tensor:
    """[n] uint8: JSON that tells the selections and the base."""
    told = {"version": 1, "selections": selections_of(model), **_base_of(delta)}
    return torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)


def _base_of(delta: Delta) -> dict[str, Any]:
    """Fingerprints of what a run leaves alone."""
    return {"rest": delta.rest, "rests": {name: part.rest for name, part in delta.items()}}


def selections_of(model: nn.Module) -> dict[str, str]:
    """{name in the plan: digest of its selection, or "all"}."""
    record: Any = record_of(model)
    plan, *_ = record
    return {name: ALL if what == ALL else what.digest for name, what in plan.items()}


def expect(model: nn.Module) -> None:
    """From now on `load_state_dict` of a converted `model` takes small states, too; called again,
    it does nothing.
    """
    if _EXPECTS in model.__dict__:
        return
    model.__dict__[_EXPECTS] = None
    model.register_load_state_dict_pre_hook(_before_load)
    model.register_load_state_dict_post_hook(_after_load)


def _before_load(model: nn.Module, state: dict, prefix: str, *_: Any) -> None:
    document = state.pop(prefix + KEY, None)
    model.__dict__[_EXPECTS] = None
    if document is None:
        return
    check(model, json.loads(bytes(document.tolist())))
    model.__dict__[_EXPECTS] = prefix


def check(model: nn.Module, told: dict) -> None:
    """Raise RuntimeError unless a small state is of this model and its plan."""
    if record_of(model) is None:
        raise RuntimeError(
            "state_dict: it holds what trained alone, and the model is not converted; sft.convert"
            " it with the plan of that run first (sft.load_delta(checkpoint).plan)"
        )
    if told["version"] != 1:
        raise RuntimeError(
            f"state_dict: version {told['version']!r} of a small checkpoint; update sparse_ft"
        )
    ours, theirs = selections_of(model), told["selections"]
    off = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    if off:
        raise RuntimeError(
            f"state_dict: it trained another selection of {off[0]!r} ({len(off)} differ); convert"
            " with the plan of that run (sft.load_delta(checkpoint).plan)"
        )
    base = _base_of(Delta.of(model))
    if any(base[what] != told[what] for what in base):
        rests = base["rests"]
        wrong = [name for name, rest in told["rests"].items() if rests.get(name) != rest]
        where = f"in {wrong[0]!r}" if wrong else "in what does not train"
        raise RuntimeError(
            "state_dict: it holds what trained alone, and this model is another base: its numbers"
            f" differ {where}; load the model that the run began with"
        )


def _after_load(model: nn.Module, keys: Any) -> None:
    """What does not train is in the model already, so nobody misses it."""
    prefix = model.__dict__.get(_EXPECTS)
    if prefix is None:
        return
    model.__dict__[_EXPECTS] = None
    names = small_names(model)
    keys.missing_keys[:] = [
        key
        for key in keys.missing_keys
        if not key.startswith(prefix) or key.removeprefix(prefix) in names
    ]


def small_names(model: nn.Module) -> set[str]:
    """The keys of a small state, but for the document."""
    values = {module._keys(at)[1] for at, module in selected_modules(model)}
    changing = _changing(model)
    trained = {name for name, p in model.named_parameters() if id(p) in changing}
    persistent = set(model.state_dict(keep_vars=True))
    buffers = {name for name, _ in model.named_buffers()} & persistent
    return values | trained | buffers
