"""Logits of a language model's head that are made only where somebody looks at them.

In between stand the hidden states. `cross_entropy` of them takes the loss straight from these, in
chunks; anything else that is asked of them makes them, once, as the head would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .._torch import make_wrapper
from ..annotations import AnyModule
from ..linear_cross_entropy import linear_cross_entropy
from ..nn import SelectiveLinear, TiedLinear, stored
from ..token_losses import HeadTokens, reduced
from ..trees import map_leaves

# A loss of one's own: from the tokens of a step to one number for each of them.
TokenLoss = Callable[[HeadTokens], torch.Tensor]
# What logits were made from, and how.
Parent = tuple["DeferredLogits", Callable[[torch.Tensor], torch.Tensor]]


class _Origin:
    """One call of a head: what it was given, and what became of its logits."""

    def __init__(
        self, head: AnyModule, hidden: torch.Tensor, forward: Callable, token_loss: TokenLoss | None
    ) -> None:
        device = hidden.device.type
        self.token_loss = token_loss
        self.head, self.hidden, self.forward, self.version = head, hidden, forward, hidden._version
        self.autocast = torch.is_autocast_enabled(device)
        self.autocast_dtype = torch.get_autocast_dtype(device)
        self.took_loss = False  # a loss was taken from the hidden states
        self.made_by: str | None = None  # the name of what made the logits whole

    def context(self) -> torch.autocast:
        return torch.autocast(self.hidden.device.type, self.autocast_dtype, self.autocast)

    def logits(self) -> torch.Tensor:
        self.check()
        with torch.enable_grad(), self.context():
            return self.forward(self.head, self.hidden)

    def check(self) -> None:
        if self.hidden._version != self.version:
            raise RuntimeError(
                "sft.lean(model, loss=True): the hidden states were changed in place after the head"
                " had read them, and the logits were not made yet; use sft.lean(model) for this"
                " model"
            )


class DeferredLogits(torch.Tensor):
    """`head(hidden)` [..., V], or a view of its tokens or another dtype of it, not made yet.

    hidden: [..., H], with the same leading dimensions. parent: what this was made from, and how;
    None for the head's own.
    """

    @staticmethod
    def __new__(
        cls, origin: _Origin, hidden: torch.Tensor, dtype: torch.dtype, parent: Parent | None = None
    ) -> DeferredLogits:
        head = origin.head
        # A replica of nn.DataParallel has it as an attribute.
        in_its_place = "weight" in head._parameters
        weight = stored(head, "weight") if in_its_place else head.weight
        shape = *hidden.shape[:-1], weight.size(0)
        return make_wrapper(cls, shape, dtype=dtype, device=hidden.device, requires_grad=False)

    def __init__(
        self,
        origin: _Origin,
        hidden: torch.Tensor,
        dtype: torch.dtype,
        parent: Parent | None = None,
    ) -> None:
        self.origin, self.hidden, self.parent = origin, hidden, parent
        self.made: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        head: nn.Module,
        hidden: torch.Tensor,
        forward: Callable,
        token_loss: TokenLoss | None = None,
    ) -> DeferredLogits:
        """What `forward(head, hidden)` would give. token_loss: what takes a loss of them."""
        origin = _Origin(head, hidden, forward, token_loss)
        return cls(origin, hidden, origin.autocast_dtype if origin.autocast else hidden.dtype)

    def dense(self) -> torch.Tensor:
        """The logits whole, made at the first call."""
        if self.made is None:
            if self.parent is None:
                self.made = self.origin.logits()
            else:
                source, make = self.parent
                self.made = make(source.dense())
        return self.made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable,
        types: Iterable[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTS:
            return torch.Tensor.__torch_function__(func, (), args, kwargs)
        if func in _LEAN and isinstance(args[0] if args else kwargs.get("input"), DeferredLogits):
            done = _LEAN[func](*args, **kwargs)
            if done is not None:
                return done
        name = getattr(func, "__name__", "an operation")
        args, kwargs = map_leaves(lambda leaf: _made_whole(leaf, name), (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares another one than it calls
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"sft.lean(model, loss=True): {func} reached logits that were not made yet by a way"
            " that torch tells nobody of; use sft.lean(model) for this model"
        )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeferredLogits(shape={tuple(self.shape)}, dtype={self.dtype})"


def _made_whole(leaf: Any, name: str) -> Any:
    """Deferred logits dense, for an operation called `name`; anything else as it is."""
    if not isinstance(leaf, DeferredLogits):
        return leaf
    logits = leaf
    logits.origin.made_by = logits.origin.made_by or name
    return logits.dense()


def _derived(
    logits: DeferredLogits,
    hidden: torch.Tensor,
    dtype: torch.dtype,
    make: Callable[[torch.Tensor], torch.Tensor],
) -> DeferredLogits:
    return DeferredLogits(logits.origin, hidden, dtype, (logits, make))


def _to(logits: DeferredLogits, *args: Any, **kwargs: Any) -> DeferredLogits | None:
    dtypes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
    if len(dtypes) != 1 or len(args) + len(kwargs) != 1:
        return None
    return _derived(logits, logits.hidden, dtypes[0], lambda dense: dense.to(dtypes[0]))


def _float(logits: DeferredLogits) -> DeferredLogits | None:
    return _to(logits, torch.float32)


def _contiguous(logits: DeferredLogits) -> DeferredLogits:
    return logits  # the hidden states of a slice need not be copied


def _reshape(logits: DeferredLogits, *shape: Any) -> DeferredLogits | None:
    """A new shape that leaves the classes as the last dimension."""
    if len(shape) == 1 and isinstance(shape[0], (tuple, list, torch.Size)):
        shape = tuple(shape[0])
    if len(shape) == 0 or not all(isinstance(size, int) for size in shape):
        return None
    classes, tokens = logits.size(-1), logits.hidden.shape[:-1].numel()
    lead = shape[:-1]
    known = torch.Size(size for size in lead if size != -1).numel()
    whole = known == tokens if -1 not in lead else known and tokens % known == 0
    if not whole or shape[-1] not in (classes, -1) or shape.count(-1) > 1:
        return None
    hidden = logits.hidden.reshape(*lead, logits.hidden.size(-1))
    return _derived(logits, hidden, logits.dtype, lambda dense: dense.reshape(shape))


def _flatten(
    logits: DeferredLogits, start_dim: int = 0, end_dim: int = -1
) -> DeferredLogits | None:
    last = logits.dim() - 1
    start, end = start_dim % logits.dim(), end_dim % logits.dim()
    if end == last or start > end:
        return None
    hidden = logits.hidden.flatten(start, end)
    return _derived(logits, hidden, logits.dtype, lambda dense: dense.flatten(start, end))


def _getitem(logits: DeferredLogits, index: Any) -> DeferredLogits | None:
    """Slices of tokens, `logits[..., :-1, :]`, or those that a mask chooses, `logits[mask]`."""
    parts = index if isinstance(index, tuple) else (index,)
    if len(parts) == 1 and isinstance(parts[0], torch.Tensor) and parts[0].dtype == torch.bool:
        plain = parts[0].dim() < logits.dim()
    else:
        plain = all(part is Ellipsis or isinstance(part, slice) for part in parts)
        reaches_last = len(parts) == logits.dim() or any(part is Ellipsis for part in parts[:-1])
        plain = plain and (not reaches_last or parts[-1] is Ellipsis or parts[-1] == slice(None))
    if not plain:
        return None
    return _derived(logits, logits.hidden[index], logits.dtype, lambda dense: dense[index])


def _times(logits: DeferredLogits, number: Any) -> DeferredLogits | None:
    """Cohere's."""
    if not isinstance(number, (int, float)) or logits.origin.head.bias is not None:
        return None
    return _derived(logits, logits.hidden * number, logits.dtype, lambda dense: dense * number)


def _over(logits: DeferredLogits, number: Any) -> DeferredLogits | None:
    """Granite's."""
    if not isinstance(number, (int, float)) or logits.origin.head.bias is not None:
        return None
    return _derived(logits, logits.hidden / number, logits.dtype, lambda dense: dense / number)


def _cross_entropy(
    input: DeferredLogits,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor | None:
    """The loss of tokens [n, V], classes [n], from their hidden states.

    None for what only torch's own does.
    """
    usual = weight is None and size_average is None and reduce is None and label_smoothing == 0.0
    if not usual or reduction not in ("mean", "sum") or type(target) is DeferredLogits:
        return None
    if (
        input.dim() != 2
        or target.dim() != 1
        or target.size(0) != input.size(0)
        or target.is_floating_point()
    ):
        return None
    origin, head = input.origin, input.origin.head
    selected: dict[str, Any] = {}
    origin.check()
    weight = head.weight
    if isinstance(head, (SelectiveLinear, TiedLinear)):
        state: Any = head._sparse_ft_state
        weight = stored(head, "weight")  # in step with its values by the line before
        selected = {"values": head.values, "selection": state.selection}
    with origin.context():
        if origin.token_loss is None:
            loss = linear_cross_entropy(
                input.hidden,
                weight,
                target,
                head.bias,
                ignore_index=ignore_index,
                reduction=reduction,
                **selected,
            )
        else:
            tokens = HeadTokens(
                input.hidden, target, weight, head.bias, **selected, ignore_index=ignore_index
            )
            loss = reduced(origin.token_loss(tokens), tokens, reduction)
    origin.took_loss = True
    return loss if origin.autocast else loss.to(input.dtype)


_PROPERTIES = "shape", "dtype", "device", "ndim", "is_cuda", "layout"
_FACTS = {
    *(getattr(torch.Tensor, name).__get__ for name in _PROPERTIES),
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.nelement,
    torch.Tensor.__len__,
    torch.Tensor.is_floating_point,
    torch.Tensor.get_device,
    torch.is_floating_point,
    torch.numel,
}
_LEAN: dict[Callable, Callable[..., Any]] = {
    torch.Tensor.float: _float,
    torch.Tensor.to: _to,
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.view: _reshape,
    torch.Tensor.reshape: _reshape,
    torch.reshape: _reshape,
    torch.Tensor.flatten: _flatten,
    torch.flatten: _flatten,
    torch.Tensor.__getitem__: _getitem,
    **dict.fromkeys(
        [torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__, torch.mul], _times
    ),
    **dict.fromkeys([torch.Tensor.div, torch.Tensor.__truediv__, torch.div], _over),
    F.cross_entropy: _cross_entropy,
}
