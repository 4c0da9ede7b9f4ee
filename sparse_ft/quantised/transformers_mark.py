"""What a model of transformers tells of itself: that it is quantised.

Its Trainer takes no model that does, unless PEFT's adapters are on it. One with selected entries
over its codes trains, so while it is converted it does not tell.
"""

from typing import Any

from torch import nn

from ..annotations import AnyModule
from .module import quantised_in
from .quantiser import quantiser_of

_MARK = "is_quantized"  # transformers', on the model
_TOLD = "_sparse_ft_told_quantised"  # on a model that does not tell for now: what it told


def let_train(model: nn.Module) -> None:
    """Let trainers take `model`, where entries train over its codes. `as_before` undoes it."""
    told = model.__dict__.get(_MARK)
    if told and any(True for _ in quantised_in(model)):
        model.__dict__[_TOLD] = told
        model.__dict__[_MARK] = False


def as_before(model: nn.Module) -> None:
    """Undo `let_train`; does no harm where it did nothing."""
    if _TOLD in model.__dict__:
        model.__dict__[_MARK] = model.__dict__[_TOLD]
        del model.__dict__[_TOLD]


def forget_quantised(model: AnyModule) -> None:
    """Let a model of transformers forget that it was quantised, where no layer is any more."""
    if any(quantiser_of(module) is not None for module in model.modules()):
        return
    known: Any = getattr(model, "hf_quantizer", None)
    forget = getattr(known, "remove_quantization_config", None)
    if forget is not None:
        forget(model)
