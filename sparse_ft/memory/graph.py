"""The autograd graph behind some outputs, and the tensors that hang on its nodes."""

from collections.abc import Iterator
from typing import Any

import torch

from .._torch import saved_by
from .storages import tensors_in

_CHECKPOINT = "torch.utils.checkpoint"


def nodes_of(outputs: Any) -> Iterator[Any]:
    """Every node behind the tensors in `outputs`, each once."""
    stack = [t.grad_fn for t in tensors_in(outputs) if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


def held_by(node: Any) -> list[torch.Tensor]:
    """Tensors on a node that no pack hook of the caller has seen.

    Attributes that a Python `autograd.Function` put on its ctx; what hooks entered inside of the
    forward (`save_on_cpu`) made of the saved tensors; the arguments that a checkpoint will run
    again with.
    """
    found = []
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        found += tensors_in(vars(node))
    for saved in saved_by(node):
        if saved.unpack_hook is not None:
            found += tensors_in(saved.data)
    for frame in _frames(node):
        found += tensors_in(frame.recompute_fn)
        for argument in getattr(frame, "saved_args", ()):
            found += tensors_in(getattr(argument, "data", None))
    return found


def _frames(node: Any) -> list[Any]:
    """The frames of `torch.utils.checkpoint` regions (use_reentrant=False) that a node lies in."""
    frames = {}
    for saved in saved_by(node):
        hook = saved.unpack_hook
        if getattr(hook, "__module__", None) == _CHECKPOINT:
            for cell in hook.__closure__ or ():
                if hasattr(cell.cell_contents, "recompute_fn"):
                    frames[id(cell.cell_contents)] = cell.cell_contents
    return list(frames.values())
