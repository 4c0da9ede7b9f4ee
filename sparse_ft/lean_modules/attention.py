"""An attention function for transformers.

A padded batch keeps its key and value heads unrepeated, and one mask a model.
"""

import copy
import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._torch import fix_weakref, is_compiling
from ..annotations import AnyModule
from ..known import Known

NAME = "sparse_ft_sdpa"
OF_NO_MODEL = "torch.", "builtins", "transformers.modeling_utils", "transformers.generation."
SETTING = "_attn_implementation"  # of a config of transformers

_masks = Known()  # of masks: additive ones by dtype, each owned by the nodes that saved it


class Before(dict):
    """The names of the attention that a model and its parts had, and `.configs`, [(what the model
    had, its own copy of it)].

    A model unpickled elsewhere needs `attention` there, too.
    """

    def __init__(self, names: Mapping[str, str | None], configs: list[tuple[Any, Any]]) -> None:
        super().__init__(names)
        self.configs = configs

    def __reduce__(self) -> tuple:
        return _registered, (dict(self), self.configs)


def _registered(names: Mapping[str, str | None], configs: list[tuple[Any, Any]]) -> Before:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return Before(names, configs)


def attention_before(model: nn.Module) -> Before | None:
    """What `use_lean_attention` would change of a transformers model with "sdpa": a `Before`.

    None where there is nothing.

    Changes nothing, so that a caller can keep what undoes the change before it is made.
    """
    if not has_sdpa(model) or why_no_lean_attention(model):
        return None
    return _registered(_names(model.config), _copies(model))


def _implementation(model: nn.Module) -> str | None:
    """How a transformers model calls its attention; None for a model that has no such name."""
    config = getattr(model, "config", None)
    if not hasattr(model, "set_attn_implementation"):
        return None
    return getattr(config, SETTING, None)


def has_sdpa(model: nn.Module) -> bool:
    """Whether it is a transformers model whose attention is torch's."""
    return _implementation(model) == "sdpa"


def why_no_lean_attention(model: nn.Module) -> str:
    """Why the attention of a transformers model stays what it is.

    "" where it is lean, or can be, or there is none.
    """
    name = _implementation(model)
    if name in (None, NAME):
        return ""
    if name != "sdpa":
        return f"it is {name!r}, and the lean one stands in for 'sdpa'"
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    if any(map(_asks_for_its_name, {cls.__module__ for cls in classes})):
        return "the model does something of its own where its attention is called 'sdpa'"
    return ""


def use_lean_attention(model: AnyModule, before: Before) -> bool:
    """Switch a model, and its parts, from "sdpa" to `attention`.

    Returns whether it took. before: its `attention_before`.

    The switch is in the config, which models may share: this one goes on with a copy.
    `restore_attention` undoes it, also half done.
    """
    _swap(model, {id(had): own for had, own in before.configs})
    model.set_attn_implementation(_names(model.config, lean=True))
    return model.config._attn_implementation == NAME


def restore_attention(model: AnyModule, before: Before) -> None:
    """Undo `use_lean_attention`.

    A config that was changed in the meantime stays the model's own.
    """
    model.set_attn_implementation(dict(before))
    _swap(model, {id(own): had for had, own in before.configs if own == had})


def _copies(model: nn.Module) -> list[tuple[Any, Any]]:
    """[(config, a copy of it)] for every config that a module of `model` holds.

    A part of several is copied once.
    """
    import transformers

    # transformers 4 has the second name only
    base = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig
    held = {id(v): v for m in model.modules() for v in vars(m).values() if isinstance(v, base)}
    memo: dict[int, Any] = {}
    return [(config, copy.deepcopy(config, memo)) for config in held.values()]


def _swap(model: nn.Module, by_id: Mapping[int, Any]) -> None:
    for module in model.modules():
        for name, value in module.__dict__.items():
            if id(value) in by_id:
                module.__dict__[name] = by_id[id(value)]


def _names(config: Any, lean: bool = False) -> dict[str, Any]:
    """The attention of a config ("") and of its parts, as `set_attn_implementation` takes it.

    lean: ours in place of "sdpa".
    """
    name = config._attn_implementation
    names = {"": NAME if lean and name == "sdpa" else name}
    for key in config.sub_configs:
        if (part := getattr(config, key, None)) is not None:
            below = _names(part, lean)
            names[key] = below if len(below) > 1 else below[""]
    return names


@functools.lru_cache(maxsize=1024)
def _asks_for_its_name(module: str) -> bool:
    """Whether a function of a Python module compares the setting's name with "sdpa", and may do
    something else for another.

    Seen in what it is compiled to: the setting is named in it, and "sdpa" is compared. Where in
    doubt, the attention of the model is left and the report says so.
    """
    if module.startswith(OF_NO_MODEL):
        return False
    found = sys.modules.get(module)
    return found is not None and any(map(_compares_sdpa, _code_of(vars(found), module)))


def _code_of(namespace: Mapping[str, Any], module: str) -> Iterator[types.CodeType]:
    """The compiled functions that a Python module, or a class of it, holds itself."""
    for value in list(namespace.values()):
        # Of a property, of a class method.
        value = getattr(value, "fget", None) or getattr(value, "__func__", value)
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, type):
            yield from _code_of(vars(value), module)
        code = getattr(inspect.unwrap(value) if callable(value) else value, "__code__", None)
        if isinstance(code, types.CodeType):
            yield code


def _compares_sdpa(code: types.CodeType) -> bool:
    inner = [value for value in code.co_consts if isinstance(value, types.CodeType)]
    if any(map(_compares_sdpa, inner)):
        return True
    if SETTING not in code.co_names and SETTING not in code.co_consts:
        return False
    steps = list(dis.get_instructions(code))
    compared = [
        steps[i - 2 : i]
        for i, step in enumerate(steps)
        if step.opname in ("COMPARE_OP", "CONTAINS_OP")
    ]
    return any(_has_sdpa(step.argval) for operands in compared for step in operands)


def _has_sdpa(value: Any) -> bool:
    return value == "sdpa" or (isinstance(value, (tuple, frozenset)) and "sdpa" in value)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa", but for what it keeps with a mask on the CPU.

    query: [B, heads, T, D]; key, value: [B, kv heads, S, D]; attention_mask: None or [B, 1, T, S].
    Kept for backward: these, the output, and 4 bytes a head and token.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    unusual = any(kwargs.get(name) is not None for name in ("position_bias", "softcap", "cache"))
    if attention_mask is None or unusual or query.device.type != "cpu":
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        additive(attention_mask, query.dtype),
        dropout,
        scale=scaling,
        enable_gqa=key.size(1) != query.size(1),
    )
    return output.transpose(1, 2).contiguous(), None


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask as zeros and -inf in `dtype`.

    One tensor for all layers that are given the same mask.
    """
    if mask.dtype != torch.bool or is_compiling() or mask.is_inference():
        return mask
    known = _masks.of(mask, dtype)
    if known is not None:
        fix_weakref(known)
        return known
    made = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    made.masked_fill_(~mask, float("-inf"))
    _masks.tell(mask, made, dtype)
    return made
