"""What makes a tensor again in backward from other tensors that are held anyway, so that whoever
reads it need not save it.

A lean module that made `output` says so (`remember`); a layer that would save it as its input asks
(`source_of`). The output is recognised by identity and version: a view, a copy or an in-place
change is another tensor, and what it was made of must be as it was. And it counts only where it was
made: a checkpoint's region, which runs twice, must save the same both times, and what came from
outside, or from another thread, is forgotten by then.
"""

import threading
import weakref
from collections import deque

import torch

from ._torch import fix_weakref, hooks_in_force, is_compiling, is_view


class _Remembered(threading.local):
    def __init__(self):
        self.sources = deque(
            maxlen=8
        )  # of the last outputs, weakly: the node that made an output owns its source


_remembered = _Remembered()


class Source:
    """How one output is made again. Keeps no activation alive before backward: whoever uses it
    saves `tensors()`.
    """

    def __init__(self, output, make, tensors, small):
        self._output, self._version = weakref.ref(output), output._version
        self._tensors, self._small = [weakref.ref(t) for t in tensors], small
        self._versions = _versions((*tensors, *small))
        self._make, self._made = make, None
        self._readers = self._served = 0
        self._hooks = hooks_in_force()

    def made(self, tensor):
        """Whether `tensor` is the output, unchanged."""
        return (
            self._output() is tensor
            and self._version == tensor._version
            and self._hooks == hooks_in_force()
        )

    def tensors(self):
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

    def rebuild(self, tensors, features=None):
        """The output [..., F], or its `features` alone; kept for the next reader (q, k and v) until
        the last has had it.
        """
        if self._made is None or self._made[0] is not features:
            self._made = features, self._make(*tensors, features=features)
        made, self._served = self._made[1], self._served + 1
        if self._served >= self._readers:
            self.forget()
        return made

    def forget(self, *_):
        """Called before the backward of the output's maker, too: no reader comes after it."""
        self._made, self._served = None, 0


def remember(output, make, tensors, small=()):
    """Say that `make(*tensors, *small, features=None or index)` gives `output`, or `output[...,
    features]`, again.

    tensors: large ones that the maker's node keeps anyway; held weakly here. small: kept as long as
    that node. Does nothing for an output that no backward will reach.
    """
    if is_compiling() or output.grad_fn is None:
        return
    source = Source(output, make, tensors, small)
    output.grad_fn.register_prehook(source.forget)  # the node owns the hook, and so the source
    _remembered.sources.append(weakref.ref(source))


def source_of(tensor):
    """The Source of `tensor`, or None if nobody remembered it as it is now. Not for a graph of
    torch.compile.
    """
    for weak in reversed(_remembered.sources):
        source = weak()
        if source is not None and source.made(tensor):
            return source
    return None


def _versions(tensors):
    return [t._version for t in tensors if t is not None]


def select(tensor, features):
    """`tensor[..., features]`, all of it for None."""
    if features is None:
        return tensor
    if tensor.dim() > 2 and tensor.is_contiguous():  # of 3-D takes 4 x as long
        flat = tensor.view(-1, tensor.size(-1)).index_select(1, features)
        return flat.view(*tensor.shape[:-1], features.size(0))
    return tensor.index_select(-1, features)


def cast(tensor, dtype):
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
