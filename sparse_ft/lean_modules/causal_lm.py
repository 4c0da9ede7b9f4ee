"""A language model whose loss is taken from its hidden states.

The logits of a training step never exist whole.

Two seams that every language model of transformers has, whatever its forward says: the output head
(`get_output_embeddings()`), which gives `DeferredLogits` during a training forward with labels, and
the loss, a cross-entropy of them. Where a model does something else with its logits, they are made
whole, and a warning says so.
"""

import contextlib
import functools
import inspect
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from .._torch import is_compiling, is_hooked, make_wrapper
from ..annotations import AnyModule
from ..nn import SelectiveLinear, TiedLinear
from .attach import lean_forward_of
from .deferred import DeferredLogits
from .linear import linear_forward


class _Deferring(threading.local):
    def __init__(self) -> None:
        # the (head, [what it gave]) of the training forwards that run now, the innermost last
        self.heads: list[tuple[nn.Module, list[DeferredLogits]]] = []


_deferring = _Deferring()
# Language models of which a warning said that their logits are made.
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Found(NamedTuple):
    """A language model. head: the layer that gives its logits. why: what prevents a lean loss, or
    "".
    """

    name: str
    model: nn.Module
    head: nn.Module
    why: str


def language_models(model: nn.Module) -> Iterator[Found]:
    """Every part of `model` that has an output head and takes labels."""
    for name, module in model.named_modules():
        head = _head(module)
        if head is not None and _position_of_labels(type(module).forward) is not None:
            yield Found(name, module, head, _why_not(module, head))


def _head(module: AnyModule) -> nn.Module | None:
    # Asked of the class: a wrapper hands on what its model has.
    if not hasattr(type(module), "get_output_embeddings"):
        return None
    try:
        return module.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


@functools.lru_cache(maxsize=1024)
def _position_of_labels(forward: Callable) -> int | None:
    """Which argument of a forward, after self, is called labels; None where none is."""
    names = list(inspect.signature(forward).parameters)
    return names.index("labels") - 1 if "labels" in names else None


def _why_not(module: nn.Module, head: nn.Module) -> str:
    if "forward" in module.__dict__ and lean_forward_of(module) is not language_model_forward:
        return "its forward was replaced by someone else"
    if make_wrapper is None:
        return "this torch has no tensors that stand for logits not made yet"
    return _why_called(head, (head_forward, linear_forward))


def _why_called(head: nn.Module, forwards: tuple) -> str:
    """Why a head must be called; "" where a call would do no more than its class does: no adapter,
    no hook, no other forward.
    """
    if type(head) not in (nn.Linear, SelectiveLinear, TiedLinear):
        return f"its output head is a {type(head).__module__}.{type(head).__name__}"
    if "forward" in head.__dict__ and lean_forward_of(head) not in forwards:
        return "the forward of its output head was replaced by someone else"
    if is_hooked(head):
        return "its output head has hooks"
    return ""


def head_forward(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """The output head of a language model.

    Deferred logits during a training forward with labels.
    """
    if not is_compiling() and _deferring.heads and _deferring.heads[-1][0] is module:
        # For other dtypes torch says what is wrong.
        if input.dtype == module.weight.dtype or torch.is_autocast_enabled(input.device.type):
            logits = DeferredLogits.of(module, input, linear_forward)
            _deferring.heads[-1][1].append(logits)
            return logits
    return linear_forward(module, input)


def language_model_forward(module: AnyModule, *args: Any, **kwargs: Any) -> Any:
    """The class's own forward.

    In training, with labels: the same loss, its logits None in the output.
    """
    own = type(module).forward
    if is_compiling():
        if kwargs.get("labels") is not None and module.training and torch.is_grad_enabled():
            _say_compiled(type(module).__name__)
        return own(module, *args, **kwargs)
    if not _trains(module, own, args, kwargs):
        return own(module, *args, **kwargs)
    head = module.get_output_embeddings()
    why = _why_called(head, (head_forward,))
    if not why and lean_forward_of(head) is not head_forward:
        why = "its output head is new; call sft.lean(model, loss=True) again"
    if why:
        _warn(module, why)
        return own(module, *args, **kwargs)
    with _deferred(head) as given:
        output = own(module, *args, **kwargs)
    output = _settled(output)
    for logits in given:
        if logits.origin.made_by is not None:
            _warn(module, f"its logits are made whole, for {logits.origin.made_by}")
    return output


# runs while torch.compile reads the model, and leaves nothing in its graph
@torch.compiler.assume_constant_result
def _say_compiled(kind: str) -> bool:
    warnings.warn(
        f"sft.lean(model, loss=True): {kind}: torch.compile takes its forward whole, and its loss"
        " is torch's own; compile the part below the head (model.model.compile(), say) for a lean"
        " loss",
        stacklevel=2,
    )
    return True


def _trains(module: nn.Module, own: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    position = _position_of_labels(own)
    labels = kwargs.get("labels")
    if "labels" not in kwargs and position is not None and len(args) > position:
        labels = args[position]
    as_tuple = kwargs.get("return_dict", True) is False
    return labels is not None and module.training and torch.is_grad_enabled() and not as_tuple


@contextlib.contextmanager
def _deferred(head: nn.Module) -> Iterator[list[DeferredLogits]]:
    given: list[DeferredLogits] = []
    _deferring.heads.append((head, given))
    try:
        yield given
    finally:
        _deferring.heads.pop()


def _settled(output: Any) -> Any:
    """`output` without deferred logits.

    None where a loss was taken from them and nobody looked, otherwise made.
    """
    if isinstance(output, DeferredLogits):
        return output.dense()
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(map(_settled, output))
    if isinstance(output, dict) and any(
        isinstance(value, DeferredLogits) for value in output.values()
    ):
        settled = {name: _settled_field(value) for name, value in output.items()}
        return type(output)(**settled)
    return output


def _settled_field(value: Any) -> Any:
    if isinstance(value, DeferredLogits):
        looked_at = value.origin.made_by is not None
        return None if value.origin.took_loss and not looked_at else value.dense()
    return value


def _warn(module: nn.Module, why: str) -> None:
    if module not in _warned:
        _warned.add(module)
        warnings.warn(
            f"sft.lean(model, loss=True): {type(module).__name__}: {why}; its loss is torch's own",
            stacklevel=4,
        )
