"""The entries of a tensor one after the other as they lie in memory, whatever its strides."""

import torch


def as_in_memory(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The numbers of `tensor` in one row, in the order in which the entries of `like` lie in
    memory.
    """
    return tensor.permute(_dims_in_memory(like)).reshape(-1)


def in_memory_order(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`flat` in the shape of `like`, its numbers in the order in which those entries lie in
    memory.
    """
    dims = _dims_in_memory(like)
    there_and_back = sorted(range(like.dim()), key=dims.__getitem__)
    return flat.view([like.size(d) for d in dims]).permute(there_and_back)


def _dims_in_memory(tensor: torch.Tensor) -> list[int]:
    return sorted(range(tensor.dim()), key=lambda dim: -tensor.stride()[dim])
