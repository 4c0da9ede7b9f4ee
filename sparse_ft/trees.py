"""What lies in nested lists, tuples and dicts, such as the arguments of an operator."""

from collections.abc import Callable, Iterator
from typing import Any


def leaves(tree: Any) -> Iterator[Any]:
    """Everything in `tree` that is no list, tuple or dict, from left to right."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        yield tree
        return
    for part in tree:
        yield from leaves(part)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree` with `function` of each of its leaves in its place."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, part) for key, part in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map_leaves(function, part) for part in tree)
    return function(tree)
