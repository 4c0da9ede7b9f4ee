"""What a SelectiveConfig chooses in a model, checked before anything is changed."""

import glob
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from ..annotations import AnyModule
from ..converted import record_of
from ..nn.foreign import check_weight
from ..nn.selected import Selected
from ..salience import select
from ..salience.targets import targets_of
from ..selection import Selection
from .config import SelectiveConfig, checked_plan
from .layer import SelectiveLayer, is_linear

ALL_LINEAR = "all-linear"


def choose(config: SelectiveConfig, model: nn.Module) -> dict[str, Selection | dict[str, Any]]:
    """{module: selection} for a new adapter, or, for one from a file, what the file says of it.

    Raises ValueError or TypeError that name the module; the model is as it was.
    """
    check_alone(model)
    chosen: dict[str, Any]
    if config.selections is not None and config.is_from_file and config.plan is None:
        chosen = dict(config.selections)
    else:
        plan = _plan(config, model)
        chosen = {name.removesuffix(".weight"): what for name, what in plan.items()}
    holders = _holders(model)
    for name, what in chosen.items():
        layer: AnyModule = _linear(model, name)
        check_weight(f"{name}.weight", layer.weight)
        if len(holders[id(layer.weight)]) > 1:
            raise ValueError(
                f"{name}: its weight is shared by {', '.join(holders[id(layer.weight)])}, and an"
                " adapter replaces entries of one; leave it out by exclude_modules"
            )
        shape = tuple(layer.weight.shape)
        if isinstance(what, Selection):
            what.check(shape)
        elif tuple(what["matrix_shape"]) != shape:
            raise ValueError(
                f"{name}: its weight is {list(shape)}, and the adapter was made for"
                f" {what['matrix_shape']}; load it into its own base model"
            )
    return chosen


def check_alone(model: nn.Module) -> None:
    """Refuse what a selective adapter does not live beside."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, SelectiveLayer):
            raise ValueError(
                f"{name}: it has an adapter of another method ({type(module).__module__}), which"
                " PEFT would neither train nor save beside a selective one. Call"
                " sft.convert(model, plan) on the model with that adapter: both train, and"
                " torch.save(model.state_dict(), path) holds both"
            )
    if record_of(model) is not None or _is_selective(model):
        raise ValueError(
            "model: it was converted by sft.convert, whose selection PEFT would freeze; call"
            " sft.revert(model) first, and give the plan to SelectiveConfig(plan=plan)"
        )


def _is_selective(model: nn.Module) -> bool:
    own = {
        slot
        for layer in model.modules()
        if isinstance(layer, SelectiveLayer)
        for slot in layer.selective_slot.values()
    }
    return any(isinstance(module, Selected) and module not in own for module in model.modules())


def _plan(config: SelectiveConfig, model: nn.Module) -> Mapping[str, Any]:
    if config.plan is not None:
        return config.plan
    with _without_adapters(model) as names:
        if isinstance(config.recipe, str):
            plan = config.of_recipe(config.recipe, model)
        elif config.recipe is not None:
            plan = config.recipe(model)
        else:
            targets = _targets(config, model, names)
            plan = select(model, targets=targets, **config.arguments())
    return checked_plan({names.get(name, name): what for name, what in plan.items()})


def _targets(config: SelectiveConfig, model: nn.Module, names: dict[str, str]) -> list[str] | None:
    """Patterns of the parameters to choose from, as `select` takes them.

    names: {name of a weight below an adapter's layer: its name in the base model}.
    """
    wanted = config.target_modules
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        wanted = None
    if wanted is None and not (config.exclude_modules or config.modules_to_save):
        return None
    rules = SimpleNamespace(
        target_modules=".*" if wanted is None else wanted,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
    )
    if wanted is None:
        weights = list(targets_of(model, None).weights)
    else:
        weights = [f"{name}.weight" for name, _ in _bare_modules(model)]
    found = []
    for name in weights:
        module = names.get(name, name).removesuffix(".weight")
        if check_target_module_exists(rules, module):
            _linear(model, name.removesuffix(".weight"))
            found.append(glob.escape(name))
    if not found:
        raise ValueError(
            f"target_modules: {config.target_modules!r} matches no module (exclude_modules:"
            f" {config.exclude_modules!r}); names look like {_examples(model)}"
        )
    return found


def _bare_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules by name, an adapter's layer by the layer that it wraps."""
    for name, module in model.named_modules():
        is_inside = name.rpartition(".")[2] == "selective_slot"
        if name and not isinstance(module, SelectiveLayer) and not is_inside:
            yield name, module


def _examples(model: nn.Module) -> str:
    linear = [name for name, module in _bare_modules(model) if is_linear(module)]
    return ", ".join(map(repr, linear[:3]))


def _linear(model: nn.Module, name: str) -> nn.Module:
    """The linear layer `name`, also below its adapters."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"plan: the model has no module {name!r}; names look like {_examples(model)}"
        ) from None
    if isinstance(module, SelectiveLayer):
        module = module.base_layer
    if not is_linear(module):
        raise TypeError(
            f"{name}: selective adapters are for nn.Linear and transformers' Conv1D, not for"
            f" {type(module).__name__}; leave it out of target_modules, or train it by"
            " modules_to_save or sft.convert"
        )
    return module


def _holders(model: nn.Module) -> dict[int, list[str]]:
    """{id of a parameter: every name of it}."""
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    return holders


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[dict[str, str]]:
    """The base model, as long as this lasts: {name of a weight: its name without adapters}."""
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, SelectiveLayer)
    }
    slots = {name: layer.selective_slot for name, layer in layers.items()}
    for layer in layers.values():
        layer._hide()
        layer.selective_slot = nn.ModuleDict()
    try:
        yield {
            f"{name}.base_layer.weight": f"{layer.label}.weight" for name, layer in layers.items()
        }
    finally:
        for name, layer in layers.items():
            layer.selective_slot = slots[name]
            layer._show()
