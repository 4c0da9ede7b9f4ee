"""Putting reparametrised deltas on layers of a model, taking them away, and merging them."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..annotations import AnyModule
from ..messages import check_module, described, did_you_mean
from ..nn.foreign import check_whole
from ..nn.reading import stored
from ..nn.selected import Selected
from ..nn.state import RECORD
from .part import Merged, Reparametrised
from .reached import unwatch, watch

_FLAGS = "_sparse_ft_reparametrised"  # on the model: {name: requires_grad} before `put` froze it


class Placed(NamedTuple):
    """A delta and the layer that it stands on."""

    part: Reparametrised
    layer: AnyModule


def parts_of(model: nn.Module) -> Iterator[Placed]:
    """All deltas in a model, each with its layer."""
    for layer in model.modules():
        for part in list(layer._modules.values()):
            if isinstance(part, Reparametrised):
                yield Placed(part, layer)


def put(model: nn.Module, parts: Mapping[str, Reparametrised], freeze: bool = True) -> nn.Module:
    """Put a delta on each of these layers of `model`, in place. Returns the model.

    parts: {name of a layer: the delta for it, a new one}. freeze: nothing else trains; what a
    converted model trains goes on, with freeze or without. `sft.convert` may come before or after.
    Their parameters are in `model.parameters()` (make the optimiser after this), their state is in
    the `state_dict`, and `sft.revert` merges them.

        put(model, {f"model.layers.{i}.self_attn.o_proj": HeadOffsets([0, 3], 64) for i in (4, 7)})

    All or nothing: KeyError for an unknown layer, TypeError or ValueError for one that a delta
    cannot stand on leave the model as it was.
    """
    check_module("model", model)
    if not isinstance(parts, Mapping) or not parts:
        raise TypeError(f"parts: expected {{name of a layer: its delta}}, got {described(parts)}")
    found = {name: _layer(model, name, part) for name, part in parts.items()}
    _check_new(parts)
    for name, part in parts.items():
        _prepare(name, part, found[name])
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    kept = _is_converted(model)
    begun: list[Placed] = []
    try:
        if freeze and not kept:
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for placed in parts_of(model):
                placed.part.requires_grad_(True)
        for name, part in parts.items():
            begun.append(Placed(part, found[name]))
            part.label = name
            part.begin(found[name])
            watch(part)
        if freeze and not kept:
            model.__dict__.setdefault(_FLAGS, flags)
    except BaseException:
        for placed in begun:
            _end(placed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))
        raise
    return model


def _is_converted(model: nn.Module) -> bool:
    """Whether `sft.convert` has said what else trains, of this model or of one that it is in."""
    return RECORD in model.__dict__ or any(isinstance(each, Selected) for each in model.modules())


def _layer(model: nn.Module, name: str, part: object) -> nn.Module:
    """The layer called `name`, if `part` may stand on it."""
    if not isinstance(part, Reparametrised):
        raise TypeError(f"parts: expected a Reparametrised for {name!r}, got {described(part)}")
    layers = dict(model.named_modules())
    if name not in layers:
        raise KeyError(f"parts: the model has no layer {name!r}{did_you_mean(name, layers)}")
    layer, parent = layers[name], layers.get(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        raise ValueError(
            f"parts: {name!r} is read by nn.MultiheadAttention, which never calls it; no delta on"
            " it would train"
        )
    weight = layer._parameters.get("weight")
    if weight is None or not weight.is_floating_point():
        raise TypeError(
            f"parts: {name!r} is a {type(layer).__name__}, which has no floating-point weight"
        )
    taken = [each for each in layer.children() if isinstance(each, Reparametrised)]
    if taken:
        raise ValueError(f"parts: {name!r} has a delta already, {taken[0].kind}; merge it first")
    return layer


def _check_new(parts: Mapping[str, Reparametrised]) -> None:
    seen: dict[int, str] = {}
    for name, part in parts.items():
        first = seen.setdefault(id(part), name)
        if first != name or part.label:
            raise ValueError(
                f"parts: the one for {name!r} stands on {part.label or first!r} already; make a"
                " new one for each layer"
            )


def _prepare(name: str, part: Reparametrised, layer: AnyModule) -> None:
    check_whole(layer)
    try:
        part.prepare(layer)
    except (IndexError, TypeError, ValueError) as error:
        raise type(error)(f"parts: {name!r}: {error}") from None


def remove(model: nn.Module) -> nn.Module:
    """Take all deltas away: the model gives what it gave before `put`. Returns the model."""
    for placed in parts_of(model):
        _end(placed)
    _thaw(model)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Write all deltas into the weights and biases of their layers, and take them away.

    The model then gives what it gave, up to the rounding of its own dtype. Raises ValueError that
    names each layer whose weight and bias cannot do that (`remove` takes its delta away); the model
    is left as it was. Returns the model.
    """
    check_mergeable(model)
    return merge_checked(model)


def check_mergeable(model: nn.Module) -> None:
    """Raise ValueError unless each delta can be merged."""
    found = [
        f"{part.label!r} ({part.kind}): {why}"
        for part, layer in parts_of(model)
        if (why := _why_not(model, part, layer))
    ]
    if found:
        raise ValueError(
            f"model: its deltas cannot be merged: {'; '.join(found[:3])}. Nothing was changed;"
            " sparse_ft.reparametrised.remove(model) takes them away"
        )


def _why_not(model: nn.Module, part: Reparametrised, layer: AnyModule) -> str:
    why = part.why_not_merged(layer)
    if why:
        return why
    weight = stored(layer, "weight")
    others = [
        name
        for name, module in model.named_modules()
        for each in module._parameters.values()
        if each is weight and module is not layer
    ]
    return f"its weight is also that of {', '.join(others)} (tied)" if others else ""


def merge_checked(model: nn.Module) -> nn.Module:
    """`merge`, for who has called `check_mergeable`. After an interrupt another call does the
    rest.
    """
    for placed in parts_of(model):
        part, layer = placed
        with torch.no_grad():
            if part.pending is None:
                part.pending = part.merged(layer)
            _write(layer, part.pending)
        _end(placed)
    _thaw(model)
    return model


def _end(placed: Placed) -> None:
    """The delta stands on its layer no more, and may be put on another."""
    unwatch(placed.part)
    placed.part.end(placed.layer)


def _write(layer: AnyModule, merged: Merged) -> None:
    for name, tensor in merged.items():
        own = layer._parameters[name]
        if own is None:
            weight = stored(layer, "weight")
            made = nn.Parameter(tensor.to(weight.dtype), requires_grad=weight.requires_grad)
            layer.register_parameter(name, made)
        else:
            own.copy_(tensor)


def is_frozen_by_put(model: nn.Module) -> bool:
    """Whether `put` has frozen what trained before, here or in a part of the model."""
    return any(_FLAGS in module.__dict__ for module in model.modules())


def _thaw(model: nn.Module) -> None:
    """What `put` froze trains as it did; of a converted model `sft.revert` sees to it."""
    if _is_converted(model):
        return
    for module in model.modules():
        flags = module.__dict__.get(_FLAGS)
        if flags is None:
            continue
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))
        del module.__dict__[_FLAGS]
