"""Which weights `select` chooses from: those that patterns name, or a default that leaves heads and
adapters alone.
"""

import fnmatch
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn

from ..annotations import AnyModule
from ..matrices import CONVOLUTIONS
from ..messages import did_you_mean
from ..nn.foreign import FLOATS
from ..nn.linear import is_conv1d
from ..quantised.quantiser import quantiser_of

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Targets(NamedTuple):
    """weights: {name: parameter} to choose from.

    left: {name: why} of the matrices that the default passed over.
    """

    weights: dict[str, nn.Parameter]
    left: dict[str, str]


def targets_of(model: nn.Module, patterns: str | Iterable[str] | None) -> Targets:
    """The parameters that glob `patterns` name, or with None the default.

    The default: the weights of all linear layers, and of the convolutions where these hold more
    than the linear layers do. Output heads, adapters (PEFT) and depthwise convolutions are left
    out. Raises ValueError for a pattern that matches nothing and for a model of which nothing is
    left.
    """
    if patterns is None:
        return _default(model)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not patterns:
        raise ValueError(
            "targets: expected glob pattern(s) on parameter names, or None for the default, got []"
        )
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not fnmatch.filter(parameters, pattern):
            raise ValueError(
                f"targets: {pattern!r} matches no parameter{_meant(pattern, list(parameters))}"
            )
    matched = {
        n: p
        for n, p in parameters.items()
        if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)
    }
    return Targets(matched, {})


def _meant(pattern: str, names: list[str]) -> str:
    """What a pattern without a match was probably meant to be."""
    wider = f"*{pattern.strip('*')}*"
    matches = fnmatch.filter(names, wider)
    if matches:
        return (
            f"; a pattern is compared with whole names: {wider!r} matches {len(matches)}, such as"
            f" {matches[0]!r}"
        )
    # A typo is looked for in whole names, and in their ends for a pattern that begins with a star.
    ends = {end: None for name in names for end in _ends(name)}
    near = did_you_mean(
        pattern.strip("*").lstrip("."), [*names, *ends] if "*" in pattern else names
    )
    return (
        near if near.startswith("; did") else f"; names look like {', '.join(map(repr, names[:3]))}"
    )


def _ends(name: str) -> Iterator[str]:
    parts = name.split(".")
    for start in range(1, len(parts)):
        yield ".".join(parts[start:])


class _Held(NamedTuple):
    """A parameter, and the module that holds it."""

    owner: nn.Module
    parameter: nn.Parameter
    is_weight: bool


def _held_in(model: nn.Module) -> dict[str, _Held]:
    """{name: what is held}, a parameter that several modules hold under each of its names."""
    found = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{path}.{attribute}".lstrip(".")
                found[name] = _Held(module, parameter, attribute == "weight")
    return found


def _default(model: nn.Module) -> Targets:
    held = {name: one for name, one in _held_in(model).items() if one.parameter.dim() >= 2}
    linear, convolutions = {}, {}
    left = _left_anyway(model, held)
    for name, (owner, parameter, is_weight) in held.items():
        if name in left:
            continue
        if is_weight and is_linear(owner):
            linear[name] = parameter
        elif is_weight and isinstance(owner, CONVOLUTIONS) and not _is_depthwise(owner):
            convolutions[name] = parameter
        else:
            left[name] = f"of {_a(owner)}"
    left = {name: left[name] for name in held if name in left}  # in the model's order
    # A convnet's few linear layers are not what it consists of.
    chosen = linear
    if _entries(convolutions) > _entries(linear):
        both = linear | convolutions
        chosen = {name: both[name] for name in held if name in both}
    else:
        left |= {name: f"of {_a(held[name].owner)}" for name in convolutions}
    if not chosen:
        raise ValueError(
            "targets: the model has no linear layer and no convolution besides heads and adapters;"
            f" name the parameters, e.g. targets='*.weight'{_example(left)}"
        )
    return Targets(chosen, left)


def _left_anyway(model: nn.Module, held: dict[str, _Held]) -> dict[str, str]:
    """{name: why} of what does not train by default, whatever its layer is."""
    layers = [m for m in model.modules() if is_linear(m) or isinstance(m, CONVOLUTIONS)]
    heads, adapters, holders = _heads(model, layers), _adapters(model), _count_holders(model)
    left = {}
    for name, (owner, parameter, is_weight) in held.items():
        if owner in adapters:
            left[name] = "of an adapter"
        elif owner in heads:
            left[name] = "of the output head"
        elif holders[id(parameter)] > 1:
            left[name] = "shared by several modules (tied)"
        elif not (parameter.dtype in FLOATS or (is_weight and quantiser_of(owner))):
            left[name] = f"{parameter.dtype} cannot train"
    return left


def _example(left: dict[str, str]) -> str:
    some = [f"{name!r} ({why})" for name, why in list(left.items())[:3]]
    return f"; left out: {', '.join(some)}{', …' if len(left) > 3 else ''}" if some else ""


def _entries(weights: dict[str, nn.Parameter]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _a(module: nn.Module) -> str:
    kind = "depthwise " if _is_depthwise(module) else ""
    name = kind + type(module).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, CONVOLUTIONS)
        and module.groups > 1
        and module.groups == module.in_channels
    )


def _count_holders(model: nn.Module) -> dict[int, int]:
    """{id(parameter): number of modules that hold it}; a module that appears twice counts once."""
    count: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            count[id(parameter)] = count.get(id(parameter), 0) + 1
    return count


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer that trains selectively as a class: nn.Linear, transformers'
    Conv1D or a quantised one.
    """
    if type(module) is nn.Linear or is_conv1d(type(module)):
        return True
    return quantiser_of(module) is not None


def _adapters(model: nn.Module) -> set[nn.Module]:
    """Modules of low-rank and other adapters: what a layer of PEFT holds beside the layer that it
    wraps.
    """
    found = set()
    for module in model.modules():
        base_of = getattr(module, "get_base_layer", None)
        if callable(base_of):
            found |= set(module.modules()) - set(base_of().modules())
    return found


def _heads(model: nn.Module, layers: list[nn.Module]) -> set[nn.Module]:
    """Modules of the output head, by what models tell of themselves, else by their structure."""
    found = set()
    tells = False
    for module in model.modules():
        for head in _named_heads(module):
            found |= set(head.modules())
        prefix = getattr(module, "base_model_prefix", None)
        if isinstance(prefix, str):
            tells = True
            found |= _outside(module, module._modules.get(prefix), layers)
    return found if found or tells else set(_last_layer(model, layers))


def _named_heads(module: nn.Module) -> Iterator[nn.Module]:
    """What transformers' `get_output_embeddings` and timm's `get_classifier` give."""
    for method in ("get_output_embeddings", "get_classifier"):
        call = getattr(module, method, None)
        if not callable(call):
            continue
        try:
            head = call()
        except (
            AttributeError,
            NotImplementedError,
            TypeError,
        ):  # declared for a family, not for this model
            continue
        for part in head if isinstance(head, (tuple, list)) else (head,):
            if isinstance(part, nn.Module):
                yield part


def _outside(module: nn.Module, body: nn.Module | None, layers: list[nn.Module]) -> set[nn.Module]:
    """What a transformers model has around its pretrained body: a classifier, a pooler of its own,
    a prediction head.
    """
    if body is None:
        return set()
    inside, every = set(body.modules()), set(module.modules())
    outside = every - inside - {module}
    is_small = _size(outside.intersection(layers)) < _size(inside.intersection(layers))
    return outside if is_small else set()


def _size(layers: Iterable[nn.Module]) -> int:
    return sum(layer.weight.numel() for layer in layers if isinstance(layer.weight, nn.Parameter))


def _last_layer(model: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """The last layer of a model of several parts, if no other layer could take in what it gives: a
    classifier.

    A chain (nn.Sequential) does not say what its last layer is for.
    """
    root = model
    while (
        len(parts := [part for part in root.children() if any(True for _ in part.parameters())])
        == 1
    ):
        (root,) = parts
    if not parts or isinstance(root, _CONTAINERS):
        return []
    ends = [module for module in parts[-1].modules() if module in layers]
    if not ends:
        return []
    last = ends[-1]
    taken_in = {_widths(other)[0] for other in layers if other is not last}
    return [last] if taken_in and _widths(last)[1] not in taken_in else []


def _widths(layer: AnyModule) -> tuple[int, int]:
    """Features that a linear layer or convolution takes, and that it gives."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, CONVOLUTIONS):
        return layer.in_channels, layer.out_channels
    return tuple(layer.weight.shape)
