"""The arguments of a recorded step: tensors are copied into buffers, plain values are held."""

from typing import Any

import torch

from ..messages import described

PLAIN = bool, int, float, str, type(None)


def signature(tree: Any) -> Any:
    """What two calls have alike that one graph serves.

    Raises TypeError for what is neither a tensor nor a plain value.
    """
    if isinstance(tree, dict):
        return tuple((name, signature(part)) for name, part in tree.items())
    if type(tree) in (list, tuple):
        return (type(tree), *map(signature, tree))
    if isinstance(tree, torch.Tensor):
        return tree.shape, tree.dtype
    if not isinstance(tree, (*PLAIN, torch.dtype, torch.device)):
        raise TypeError(
            "capture: the arguments of a step are tensors and plain values, in lists, tuples and"
            f" dicts, got {described(tree)}; what stays the same at each call is better known to"
            " the step itself, and dict(batch) makes a dict of what is nearly one"
        )
    return type(tree), tree


def buffer_of(leaf: Any, device: torch.device) -> Any:
    """In the place of an argument."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return torch.empty_like(leaf, device=device, requires_grad=leaf.requires_grad)


def detached(leaf: Any) -> Any:
    """A result without its graph."""
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf
