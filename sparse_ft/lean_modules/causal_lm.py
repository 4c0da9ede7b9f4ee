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
from ..token_losses import HeadTokens
from .attach import lean_forward_of
from .deferred import DeferredLogits, TokenLoss
from .linear import linear_forward


class _Call(NamedTuple):
    """A forward of a language model whose head defers. given: what the head gave."""

    head: nn.Module
    token_loss: TokenLoss | None
    given: list[DeferredLogits]


class _Deferring(threading.local):
    def __init__(self) -> None:
        self.calls: list[_Call] = []  # those that run now, the innermost last


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
    forward = lean_forward_of(module)
    is_ours = forward is language_model_forward or isinstance(forward, WithLoss)
    if "forward" in module.__dict__ and not is_ours:
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
    if not is_compiling() and _deferring.calls and _deferring.calls[-1].head is module:
        # For other dtypes torch says what is wrong.
        if input.dtype == module.weight.dtype or torch.is_autocast_enabled(input.device.type):
            call = _deferring.calls[-1]
            logits = DeferredLogits.of(module, input, linear_forward, call.token_loss)
            call.given.append(logits)
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
    why = _why_not_deferred(head)
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


def _why_not_deferred(head: nn.Module) -> str:
    """Why the loss of this forward cannot be taken from the hidden states; "" where it can."""
    why = _why_called(head, (head_forward,))
    if not why and lean_forward_of(head) is not head_forward:
        why = "its output head is new; call sft.lean(model, loss=True) again"
    return why


class WithLoss:
    """`language_model_forward` that trains on a loss of one's own.

    Where that loss cannot be taken, it raises: the model's own is another objective.
    """

    def __init__(self, token_loss: TokenLoss) -> None:
        self.token_loss = token_loss

    def __call__(self, module: AnyModule, *args: Any, **kwargs: Any) -> Any:
        own = type(module).forward
        is_training = module.training and torch.is_grad_enabled()
        if not is_training or _labels(own, args, kwargs) is None:
            return own(module, *args, **kwargs)
        head = module.get_output_embeddings()
        if is_compiling():
            raise _unused(module, "torch.compile takes its forward whole")
        why = _why_not_deferred(head)
        if kwargs.get("return_dict", True) is False:
            why = "return_dict=False"
        if why:
            raise _unused(module, why)
        prepare = getattr(self.token_loss, "prepare", None)
        if prepare is not None:
            prepare(functools.partial(_tokens_of, module, own, args, kwargs))
        with _deferred(head, self.token_loss) as given:
            output = own(module, *args, **kwargs)
        _check_used(module, given)
        return _settled(output)


def _check_used(module: nn.Module, given: list[DeferredLogits]) -> None:
    """Raise unless the loss that was given is the one that was taken."""
    if any(logits.origin.took_loss for logits in given):
        return
    made_by = [logits.origin.made_by for logits in given if logits.origin.made_by is not None]
    why = f"its logits are made whole, for {made_by[0]}" if made_by else "it took no loss of them"
    raise _unused(module, why)


def _unused(module: nn.Module, why: str) -> RuntimeError:
    return RuntimeError(
        f"sft.lean(model, loss=...): {type(module).__name__} cannot train on the loss that was"
        f" given: {why}"
    )


def _tokens_of(module: AnyModule, own: Callable, args: tuple, kwargs: dict) -> HeadTokens:
    """The tokens of this call as the model sees them now, without dropout or gradients."""
    seen: list[HeadTokens] = []

    def look(tokens: HeadTokens) -> torch.Tensor:
        seen.append(tokens)
        return tokens.hidden.new_zeros(tokens.target.shape)

    training = {each: each.training for each in module.modules()}
    try:
        module.eval()
        with torch.no_grad(), _deferred(module.get_output_embeddings(), look):
            own(module, *args, **kwargs)
    finally:
        for each, was in training.items():
            each.training = was
    if not seen:
        raise _unused(module, "it takes no cross-entropy of its head's logits as they are")
    return seen[-1]


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


def _labels(own: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The labels of a call, or None."""
    position = _position_of_labels(own)
    if "labels" not in kwargs and position is not None and len(args) > position:
        return args[position]
    return kwargs.get("labels")


def _trains(module: nn.Module, own: Callable, args: tuple, kwargs: dict[str, Any]) -> bool:
    labels = _labels(own, args, kwargs)
    as_tuple = kwargs.get("return_dict", True) is False
    return labels is not None and module.training and torch.is_grad_enabled() and not as_tuple


@contextlib.contextmanager
def _deferred(
    head: nn.Module, token_loss: TokenLoss | None = None
) -> Iterator[list[DeferredLogits]]:
    given: list[DeferredLogits] = []
    _deferring.calls.append(_Call(head, token_loss, given))
    try:
        yield given
    finally:
        _deferring.calls.pop()


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
