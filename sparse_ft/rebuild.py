"""What makes a tensor again in backward from other tensors that are held anyway, so that whoever
reads it need not save it; and copies that several readers share.

A lean module that made `output` says so (`remember`); a layer that would save it as its input asks
(`source_of`). The output is recognised as `known` says: by identity and version, and what it was
made of must be as it was. And it counts only where it was made: a checkpoint's region, which runs
twice, must save the same both times, so what came from outside, or from another thread, does not
count there.
"""

import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from threading import get_ident
from typing import Any

import torch

from ._torch import fix_weakref, hooks_in_force, is_compiling, is_view, will_run
from .known import Known
from .ops._common import WHOLE
from .ops._library import refuse_layout

Make = Callable[..., torch.Tensor]  # make(*tensors, *small, features=None)

_sources = Known()  # of outputs: `Source`s, each owned by the node that made the output
_copies = Known()  # of inputs: copies of some features, each owned by the nodes that saved it


class Source:
    """How one output is made again. Keeps no activation alive before backward: whoever uses it
    saves `tensors()`.
    """

    __slots__ = (
        "_tensors",
        "_small",
        "_versions",
        "_make",
        "_features",
        "_made",
        "_readers",
        "_served",
        "thread",
        "hooks",
        "__weakref__",
    )

    def __init__(
        self, make: Make, tensors: Sequence[torch.Tensor], small: Sequence[torch.Tensor | None]
    ):
        ref = weakref.ref
        self._tensors = [ref(tensor) for tensor in tensors]
        self._small = small
        self._versions = _versions([*tensors, *small])
        self._make = make
        self._made: torch.Tensor | None = None
        self._features: torch.Tensor | None = None
        self._readers = self._served = 0
        # Where it was made, and where alone it counts.
        self.thread, self.hooks = get_ident(), hooks_in_force()

    def tensors(self) -> tuple[torch.Tensor | None, ...] | None:
        """What `rebuild` needs, to be saved for backward by one more reader; None where some of it
        is gone or was changed.
        """
        large = [weak() for weak in self._tensors]
        for tensor in large:
            if tensor is None:
                return None
            fix_weakref(tensor)
        tensors = (*large, *self._small)
        if _versions(tensors) != self._versions:
            return None
        self._readers += 1
        return tensors

    def rebuild(
        self, tensors: Iterable[torch.Tensor | None], features: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The output [..., F], or its `features` alone; kept for the next reader (q, k and v) until
        the last has had it.
        """
        if self._made is None or self._features is not features:
            self._made, self._features = self._make(*tensors, features=features), features
        made = self._made
        self._served += 1
        if self._served >= self._readers:
            self.forget()
        return made

    def forget(self, *_: Any) -> None:
        """Called before the backward of the output's maker, too: no reader comes after it."""
        self._made = self._features = None
        self._served = 0


def remember(
    output: torch.Tensor,
    make: Make,
    tensors: Sequence[torch.Tensor],
    small: Sequence[torch.Tensor | None] = (),
) -> None:
    """Say that `make(*tensors, *small, features=None or index)` gives `output`, or `output[...,
    features]`, again.

    tensors: large ones that the maker's node keeps anyway; held weakly here. small: kept as long as
    that node. Does nothing for an output that no backward will reach.
    """
    if is_compiling():
        return
    node = output.grad_fn  # asked for once: Python's view of it is made anew each time
    if node is None:
        return
    source = Source(make, tensors, small)
    node.register_prehook(source.forget)  # the node owns the hook, and so the source
    _sources.tell(output, source)


def source_of(tensor: torch.Tensor) -> Source | None:
    """The Source of `tensor`, or None if nobody remembered it as it is now. Not for a graph of
    torch.compile.
    """
    if (id(tensor), None) not in _sources.facts:  # most have none, and every layer asks
        return None
    source = _sources.of(tensor)
    if source is None or source.hooks != hooks_in_force() or source.thread != get_ident():
        return None
    return source


class Handover:
    """From who makes an output again, during backward, to the backward of the node that made it
    first, which runs next and need not compute the same anew.
    """

    __slots__ = ("_node", "_left")

    def __init__(self) -> None:
        self._node: weakref.ref | None = None
        self._left: Any = None

    def to(self, node: Any) -> None:
        """`node` is who takes it; held weakly, for it holds this."""
        self._node = weakref.ref(node)

    def is_awaited(self) -> bool:
        """Whether the backward that runs now will reach the node: what is left is taken."""
        return self._node is not None and will_run(self._node())

    def leave(self, left: torch.Tensor) -> None:
        self._left = left

    def take(self) -> torch.Tensor | None:
        """What was left, once."""
        left, self._left = self._left, None
        return left


def shared_copy(input: torch.Tensor, features: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`input[..., features]` in `dtype`, as [T, features]; one copy for all who ask for the same
    while the input is unchanged (q, k and v ask in a row).
    """
    facts, ref = _copies.facts, weakref.ref
    key = id(input), ref(features)
    found = facts.get(key)
    if found is not None:
        about, version, fact = found
        known = fact()
        if known is not None and about() is input and version == input._version:
            fix_weakref(known)
            if known.dtype is dtype:
                return known
    try:
        made = input.index_select(1, features) if input.dim() == 2 else _selected(input, features)
    except NotImplementedError:
        refuse_layout("input", input)
        raise
    if wants_alignment(input) and made.size(1) % WHOLE:
        made = _aligned(made, dtype)
    elif made.dtype is not dtype:
        made = made.to(dtype)
    try:
        facts[key] = ref(input), input._version, ref(made)  # `_copies.tell`, without its call
    except RuntimeError:
        return made  # of inference_mode: nothing tells of changes, so it is copied each time
    if len(facts) > _copies.limit:
        _copies.sweep()
    return made


ALIGNED = 16  # bytes on which each token of an operand of a GPU's fast products starts


# Whether a product is much slower where a token of its operand starts on another byte: on a GPU.
# Without a frame of Python's: every forward asks.
wants_alignment: Callable[[torch.Tensor], bool] = operator.attrgetter("is_cuda")


def _aligned(copy: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`copy` [T, C] in `dtype`, each token on 16 bytes: as it is, or with room between them."""
    tokens, count = copy.shape
    missing = -count % (ALIGNED // dtype.itemsize)
    if not missing:
        return cast(copy, dtype)
    return copy.new_empty(tokens, count + missing, dtype=dtype)[:, :count].copy_(copy)


def _selected(input: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """`input[..., features]` as [T, features], however the input lies: a checkpoint's second
    forward may get a contiguous copy.
    """
    if input.is_contiguous():  # to select in 3-D takes 4 x as long
        return input.view(-1, input.size(-1)).index_select(1, features)
    return input.index_select(-1, features).view(-1, features.size(0))


def _versions(tensors: Iterable[torch.Tensor | None]) -> list[int]:
    return [tensor._version for tensor in tensors if tensor is not None]


def select(tensor: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
    """`tensor[..., features]`, all of it for None."""
    if features is None:
        return tensor
    if tensor.dim() > 2 and tensor.is_contiguous():  # of 3-D takes 4 x as long
        flat = tensor.view(-1, tensor.size(-1)).index_select(1, features)
        return flat.view(*tensor.shape[:-1], features.size(0))
    return tensor.index_select(-1, features)


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`, which takes 1.4 µs to do nothing."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def unviewed(output: torch.Tensor) -> torch.Tensor:
    """`output`, made in a Function's forward, on the same memory but no view of another tensor.

    Autograd refuses to write in place over a view that a Function returns. `F.linear` with a bias
    gives a view for an input of more than two dimensions, and so does `F.conv1d`.
    """
    if is_compiling() or is_view(output):
        return output.detach()
    return output
