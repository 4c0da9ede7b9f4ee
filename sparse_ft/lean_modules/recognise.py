"""Which lean forward can stand in for a module's own.

Torch's classes by type, all others by what they do.

Every lean forward registers itself where it is written (`register.lean_for`, `register.lean_if`). A
probe runs it beside the module's own on a small stand-in (`probe.py`): neither a class's name nor
its text counts.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..annotations import AnyModule
from ..nn import Selected
from ..nn.linear import is_conv1d
from . import activations, batch_norm, conv, conv_layer, dropout, gated, linear, norms, pool
from .probe import Undecided, behaves_like, key, quiet
from .register import BY_CLASS, BY_PROBE, attribute_of

# Each of these registers its lean forwards when it is imported.
ROOMS = activations, batch_norm, conv, conv_layer, dropout, gated, linear, norms, pool
# (forward, ""), (None, why not), or (None, "") where nothing can be won
Found = tuple[Callable | None, str]
UNKNOWN = "its forward is not one that is known"

# Of torch's: as lean as can be.
FRUGAL = {"Tanh", "Sigmoid", "Softmax", "Softmax2d", "LogSoftmax", "MultiheadAttention"}

# Those of whole features (Dropout1d, 2d, 3d) keep one number a feature.
DROPOUTS = nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout


class Recogniser:
    """Recognises the modules of one model, parts first. Like modules are probed once."""

    def __init__(self) -> None:
        self._known: dict[tuple, Found] = {}

    def lean_forward(self, module: nn.Module) -> Found:
        """The lean forward of a module, or why it has none."""
        kind = type(module)
        if kind in BY_CLASS:
            return _usable(module, BY_CLASS[kind])
        if is_conv1d(kind):
            return _usable(module, linear.conv1d_forward)
        if isinstance(module, Selected) or kind.__module__.startswith("torch."):
            return None, _why_unknown(module)
        alike = key(module)
        if alike not in self._known:
            self._known[alike] = _probed(module)
        forward, why = self._known[alike]
        return (forward, why) if forward is None else _usable(module, forward)


def _usable(module: AnyModule, forward: Callable) -> Found:
    if attribute_of(forward) in module.__dict__:
        return None, "its forward was replaced by someone else"
    if forward is activations.silu_forward and getattr(module, "inplace", False):
        return None, "it works in place"
    if forward is norms.torch_rms_norm_forward and len(module.normalized_shape) != 1:
        return None, "it normalises more than the last dimension"
    return forward, ""


def _probed(module: nn.Module) -> Found:
    """What probes find. A module that a probe is for, and that none knows, is left and named."""
    trials: dict[tuple, list[Callable]] = {}
    for known in BY_PROBE:
        trials.setdefault((known.cases, known.attribute), []).append(known.forward)
    is_meant, undecided = False, ""
    with quiet():
        for (cases, attribute), forwards in trials.items():
            try:
                trial = cases(module) if hasattr(type(module), attribute) else None
                if trial is None:
                    continue
                is_meant |= cases is not activations.activation_cases
                own = getattr(type(module), attribute)
                found = behaves_like(own, forwards, trial)
            except Undecided as error:
                is_meant |= cases is not activations.activation_cases
                undecided = undecided or f"{UNKNOWN}: {error}"
                continue
            if found is not None:
                return found, ""
        if replaced := _replaced(module):
            return None, replaced
        if is_meant or _is_built_like_one(module):
            return None, undecided or UNKNOWN
        return None, "an activation that is not known" if activations.is_wasteful(module) else ""


def _why_unknown(module: nn.Module) -> str:
    """What a module of torch's, or with selected entries, might win; "" for nothing."""
    kind = type(module)
    if kind.__module__ == "torch.nn.modules.activation":
        return "" if kind.__name__ in FRUGAL else "an activation that is not known"
    if isinstance(module, DROPOUTS):
        return "a dropout that is not known"
    return "" if isinstance(module, Selected) else _replaced(module)


def _replaced(module: nn.Module) -> str:
    bases = [base for base in BY_CLASS if isinstance(module, base) and base is not nn.Linear]
    return f"its class is not nn.{bases[0].__name__} itself" if bases else ""


def _is_built_like_one(module: nn.Module) -> bool:
    """Whether a module looks like a norm, a gated MLP, experts or a layer of a convnet."""
    children = module._modules.keys()
    weights = [getattr(child, "weight", None) for child in module.children()]
    made = [
        weight for weight in weights if isinstance(weight, torch.Tensor) and not is_lazy(weight)
    ]
    products = sum(weight.dim() == 2 for weight in made)
    name = type(module).__name__
    norm = not children and "Norm" in name
    gated_mlp = any("gate_" in child for child in children) or (
        name.endswith("MLP") and products > 2
    )
    experts = "gate_up_proj" in module._parameters
    convnet = {"convolution", "normalization"} <= children or {"conv", "norm"} <= children
    return norm or gated_mlp or experts or convnet
