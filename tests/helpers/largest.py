"""The largest tensor that any operation makes."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """In here `.entries` is the number of entries of the largest tensor that was made (of its
    storage, so that views count as what they are views of), of those that are not in `but`.
    """

    def __init__(self, *but: torch.Tensor) -> None:
        super().__init__()
        self.entries = 0
        self.but = {each.untyped_storage().data_ptr() for each in but}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in self.but:
                entries = leaf.untyped_storage().nbytes() // leaf.element_size()
                self.entries = max(self.entries, entries)
        return made
