"""lean: put lean forwards into a model that exists, and take them out again."""

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from ..annotations import AnyModule
from ..messages import check_module
from ..nn import Selected, SelectiveConv1D, SelectiveLinear
from .attach import attach, attached, detach, lean_forward_of
from .attention import (
    Before,
    attention_before,
    has_sdpa,
    restore_attention,
    use_lean_attention,
    why_no_lean_attention,
)
from .causal_lm import WithLoss, head_forward, language_model_forward, language_models
from .contextual import Contextual, check_contextual, contextual_forward
from .deferred import TokenLoss
from .eight_bit import eight_bit_forward
from .recognise import Found, Recogniser
from .register import attribute_of
from .report import LeanReport, LeanRow

_RECORD = "_sparse_ft_lean"  # on the model: the attention that it had, None if that was not changed
_NOT_LEAN = object()
# The model's record, and what `attach` has put on each module.
LeanState = tuple[Any, list[tuple[nn.Module, dict[str, Any]]]]


def lean(
    model: nn.Module,
    loss: bool | TokenLoss = False,
    eight_bit_inputs: bool = False,
    contextual: Contextual | None = None,
) -> LeanReport:
    """Let `model` keep for backward only what backward needs, in place, on this model only.

    Returns a `LeanReport`.

    model: nn.Module; its results stay as they were up to rounding. Classes, parameters, state_dict
    and hooks stay; each changed module gets a `forward` of its own, which `sft.revert` takes away
    again. Works before and after `sft.convert`; doing it again changes nothing. What is not known
    is left alone, and the report says so. All or nothing: an exception leaves the model as it was.

    loss: also take the training loss of a language model straight from its hidden states
    (`linear_cross_entropy`); its output then has logits only in evaluation and without labels.
    Warns where no loss is found; a model that does more with its logits (a soft cap, say) makes
    them, and warns at its first step. Under torch.compile the loss is torch's own.
    A function instead of True is a training loss of one's own that needs no logits: it is given the
    `token_losses.HeadTokens` of a step and returns one number for each, [n]; the model sums or
    averages them as it does its own. Dynamic fine-tuning, for example:

        sft.lean(model, loss=lambda tokens: tokens.cross_entropy(lambda each: each.probability))

    In evaluation, and without labels, the model's own loss and logits are what they were. Where
    such a loss cannot be taken, ValueError here, or RuntimeError at the first step, says why.
    eight_bit_inputs: APPROXIMATE; layers with selected rows or entries keep an input that no lean
    module can make again in 8 bits (`lean_modules/eight_bit.py`); only for a model that is
    converted already.
    contextual: APPROXIMATE; in training, frozen gated MLPs use a share of their channels, chosen in
    each batch (`lean_modules/contextual.py`).
    """
    check_module("model", model)
    if contextual is not None:
        check_contextual(contextual)
    of_loss, left_by_loss, offers = _of_loss(model, loss)
    rows, recogniser = [], Recogniser()
    thinned: dict[str, str] = {}  # {gated MLP: why it stays exact, or ""}
    before = lean_state(model)
    try:
        attention = _use_attention(model)
        # Parts first: a gated MLP needs a lean activation.
        for name, module in reversed(list(model.named_modules())):
            forward = of_loss.get(module)
            why = f"its loss: {left_by_loss[module]}" if module in left_by_loss else ""
            if forward is None and not why:
                forward, why = _lean_forward(module, eight_bit_inputs, recogniser)
            if forward is not None and contextual is not None:
                found = contextual_forward(name, module, forward, contextual)
                if found is not None:
                    forward, thinned[name] = found
            if forward is not None and lean_forward_of(module) is not forward:
                attach(module, attribute_of(forward), forward)
            if forward is not None or why:
                rows.append(LeanRow(name, type(module).__name__, forward is not None, why))
    except BaseException:
        restore_lean_state(model, before)
        raise
    attention_left = why_no_lean_attention(model) or _not_taken(model, attention)
    report = LeanReport(reversed(rows), attention is not None, offers, attention_left)
    report.contextual = contextual
    report.thinned = dict(reversed(thinned.items()))
    return report


def _lean_forward(module: AnyModule, eight_bit_inputs: bool, recogniser: Recogniser) -> Found:
    """(the lean forward of one module, why there is none): None and "" where nothing can be won."""
    selective = isinstance(module, (SelectiveLinear, SelectiveConv1D))
    if eight_bit_inputs and selective and module._sparse_ft_state.part[0] is None:
        return eight_bit_forward, ""
    forward = lean_forward_of(module)
    if forward is not None:
        return forward, ""
    if eight_bit_inputs and isinstance(module, Selected) and not module.has_cache:
        return None, "a quantised layer keeps its input as it is, not in 8 bits"
    return recogniser.lean_forward(module)


def _of_loss(
    model: nn.Module, asked: bool | TokenLoss
) -> tuple[dict[nn.Module, Callable], dict[nn.Module, str], list[str]]:
    """({module: lean forward}, {module: why it has none}, [classes whose loss could be lean]) of
    the language models in `model`.
    """
    forwards: dict[nn.Module, Callable] = {}
    left: dict[nn.Module, str] = {}
    offers: list[str] = []
    if not (isinstance(asked, bool) or callable(asked)):
        raise TypeError(f"loss: expected a bool or a function of HeadTokens, got {asked!r}")
    model_forward = WithLoss(asked) if callable(asked) else language_model_forward
    for _, module, head, why in language_models(model):
        if asked and not why:
            forwards |= {module: model_forward, head: head_forward}
        elif asked:
            left[module] = why
        elif not why and lean_forward_of(module) is None:
            offers.append(type(module).__name__)
    if asked and not forwards:
        why = ", ".join(f"{type(module).__name__}: {why}" for module, why in left.items())
        why = why or (
            "no part of it has an output head (get_output_embeddings()) and a forward that takes"
            " labels"
        )
        said = f"loss: no loss of {type(model).__name__} becomes lean: {why}"
        if callable(asked):
            raise ValueError(said)
        warnings.warn(said, stacklevel=3)
    return forwards, left, offers


def _use_attention(model: nn.Module) -> Before | None:
    """Make attention lean where it can be, and keep on the model what it was, first, so that a
    change half done can be undone.
    """
    record = model.__dict__.setdefault(_RECORD, None)
    before = attention_before(model)
    if before is not None:
        model.__dict__[_RECORD] = before
        if not use_lean_attention(model, before):
            restore_attention(model, before)
            model.__dict__[_RECORD] = record
    return model.__dict__[_RECORD]


def lean_state(model: nn.Module) -> LeanState:
    """What `restore_lean_state` needs to make the model exactly as lean as it is now."""
    record = model.__dict__.get(_RECORD, _NOT_LEAN)
    return record, [(module, attached(module)) for module in model.modules()]


def restore_lean_state(model: nn.Module, state: LeanState) -> None:
    """Undo what happened since `lean_state`, also half done.

    Called again after an interrupt, it does the rest.
    """
    record, forwards = state
    for module, given in forwards:
        detach(module)
        module.__dict__.update(given)
    now = model.__dict__.get(_RECORD)
    if now is not None and now is not record:
        restore_attention(model, now)
    if record is _NOT_LEAN:
        model.__dict__.pop(_RECORD, None)
    else:
        model.__dict__[_RECORD] = record


def _not_taken(model: nn.Module, attention: Before | None) -> str:
    if attention is not None or not has_sdpa(model):
        return ""
    return "transformers took no other one for this model"


def is_lean(module: nn.Module) -> bool:
    """Whether `lean` gave this module its forward."""
    return lean_forward_of(module) is not None


def unlean(model: nn.Module) -> bool:
    """Undo `lean`: every module runs its class's forward again.

    Returns whether there was anything to undo.
    """
    if _RECORD not in model.__dict__:
        return False
    attention = model.__dict__[_RECORD]
    for module in model.modules():
        detach(module)
    if attention is not None:
        restore_attention(model, attention)
    del model.__dict__[_RECORD]
    return True
