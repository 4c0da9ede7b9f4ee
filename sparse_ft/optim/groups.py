"""The parameter groups of a SelectiveAdamW: what trains, and what of it does not decay."""

import fnmatch
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..nn.steps import meet_shards_in, owner_of


def groups_of(params: Any, no_decay: str | Iterable[str]) -> list:
    """`params` without what does not train, as torch takes them; with patterns, as groups that
    decay and groups that do not.

    params: tensors, (name, tensor) pairs, or groups of either. no_decay: glob patterns on names; a
    selected parameter goes by its own name ("0.bias") and by the one under which its values are
    listed ("0.bias_selected.values"). Warns of a pattern that matches nothing, frozen parameters
    included. Raises TypeError or ValueError that names the argument.
    """
    params = _listed(params)
    meet_shards_in(_tensors(params))  # names and owners are asked for by the values
    patterns = [no_decay] if isinstance(no_decay, str) else list(no_decay)
    if patterns:
        _check_patterns(params, patterns)
    trainable = _trainable(params)
    if not trainable:
        raise ValueError(
            "params: nothing requires grad; was the model converted (sft.convert) before the"
            " optimiser was made?"
        )
    return _split(trainable, patterns) if patterns else trainable


def _listed(params: Any) -> Any:
    """`params` as a list of tensors, of pairs, or of groups whose "params" are lists."""
    if isinstance(params, torch.nn.Module):
        raise TypeError(
            f"params: expected parameters, got a {type(params).__name__}; pass model.parameters()"
        )
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    if not params or not isinstance(params[0], dict):
        return params
    return [{**group, "params": _listed(group["params"])} for group in params]


def _items(params: Any) -> Any:
    """Every tensor or pair, whatever group it is in."""
    if params and isinstance(params[0], dict):
        return [item for group in params for item in group["params"]]
    return params


def _tensors(params: Any) -> Iterator[torch.Tensor]:
    for item in _items(params):
        yield item[1] if isinstance(item, tuple) else item


def _trainable(params: Any) -> Any:
    if params and isinstance(params[0], dict):
        groups = [
            {**group, "params": [item for item in group["params"] if _requires_grad(item)]}
            for group in params
        ]
        return [group for group in groups if group["params"]]
    return [item for item in params if _requires_grad(item)]


def _requires_grad(item: Any) -> bool:
    parameter = item[1] if isinstance(item, tuple) else item
    if not isinstance(parameter, torch.Tensor):
        raise TypeError(
            f"params: expected tensors, (name, tensor) pairs or groups of them, got {parameter!r}"
        )
    return parameter.requires_grad


def _check_patterns(params: Any, patterns: list[str]) -> None:
    items = _items(params)
    if not all(isinstance(item, tuple) for item in items):
        raise ValueError(
            f"no_decay: {patterns} are matched against names; pass model.named_parameters()"
        )
    idle = [pattern for pattern in patterns if not any(_matches(item, [pattern]) for item in items)]
    if idle:
        names = [_names(item)[-1] for item in items if item[1].requires_grad] or [
            name for name, _ in items
        ]
        warnings.warn(
            f"no_decay: {', '.join(map(repr, idle))} {'matches' if len(idle) == 1 else 'match'} no"
            f" parameter, so nothing is exempt by {'it' if len(idle) == 1 else 'them'}; names look"
            f" like {', '.join(map(repr, names[:3]))}",
            stacklevel=4,
        )


def _names(item: Any) -> Any:
    """The name that a parameter is listed under; for values also the one of the parameter that they
    are selected of.
    """
    name, parameter = item
    owner = owner_of(parameter)
    if owner is None or not name.endswith("values"):
        return [name]
    return [name, owner._keys(name.removesuffix("values"))[0]]


def _matches(item: Any, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in _names(item) for pattern in patterns)


def _split(params: Any, patterns: list[str]) -> Any:
    groups = params if isinstance(params[0], dict) else [{"params": params}]
    split = []
    for group in groups:
        exempt = [_matches(item, patterns) for item in group["params"]]
        decaying = [item for item, is_exempt in zip(group["params"], exempt) if not is_exempt]
        others = [item for item, is_exempt in zip(group["params"], exempt) if is_exempt]
        split += [{**group, "params": decaying}, {**group, "params": others, "weight_decay": 0.0}]
    return [group for group in split if group["params"]]
