"""What error messages share: a value told by its type and shape, and the name that was probably
meant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .texts import did_you_mean

__all__ = ["check_module", "described", "did_you_mean"]
_SHOWN = 4  # items of a batch that a message lists
_LONGEST = 60  # characters of a plain value


def described(value: Any) -> str:
    """A few words on any value: "a Tensor [8, 3] float32", "a tuple (Tensor [8] int64, 3)"; never a
    whole model.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, (torch.Tensor, Mapping, Sequence)):
        text = repr(value)
        return text if _is_plain(value, text) else f"a {type(value).__name__}"
    return f"a {_inner(value)}"


def check_module(name: str, value: Any) -> None:
    """Raise TypeError that names the argument unless `value` is an nn.Module."""
    if isinstance(value, torch.nn.Module):
        return
    way_out = ""
    if isinstance(value, (str, bytes)):
        way_out = "; load it first, with from_pretrained or torch.load"
    elif isinstance(value, type):
        way_out = "; make one of it"
    elif isinstance(value, torch.optim.Optimizer):
        way_out = "; the model comes before the optimizer"
    raise TypeError(f"{name}: expected an nn.Module, got {described(value)}{way_out}")


def _inner(value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        return f"{kind} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        items = [f"{key!r}: {_short(item)}" for key, item in list(value.items())[:_SHOWN]]
        return f"{kind} {{{', '.join(items)}{_more(value)}}}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        items = [_short(item) for item in list(value)[:_SHOWN]]
        return f"{kind} ({', '.join(items)}{_more(value)})"
    text = repr(value)
    return text if _is_plain(value, text) else kind


def _short(item: Any) -> str:
    """An item inside of a batch: a tensor in full, a container by its type only."""
    is_container = isinstance(item, (Mapping, Sequence)) and not isinstance(item, (str, bytes))
    return f"{type(item).__name__} of {len(item)}" if is_container else _inner(item)


def _more(items: Sequence | Mapping) -> str:
    return ", …" if len(items) > _SHOWN else ""


def _is_plain(value: Any, text: str) -> bool:
    is_own_text = not isinstance(value, torch.nn.Module) and " object at 0x" not in text
    return is_own_text and len(text) <= _LONGEST and "\n" not in text
