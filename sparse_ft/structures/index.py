"""What an index must be before a selection holds it."""

import torch
from torch import Tensor

INT32_MAX = 2**31 - 1


def smallest_dtype(index: Tensor) -> torch.dtype:
    """int32 where every number of `index` fits, else int64."""
    return torch.int32 if index.max() <= INT32_MAX else torch.int64


def as_index(index: object, shape: str, columns: int) -> Tensor:
    """A copy of `index` in int64.

    shape: in words. columns: of an index with two dimensions, or 0. Raises TypeError or ValueError
    for what is no dense tensor of integers, of that shape and with data.
    """
    try:
        if isinstance(index, torch.Tensor):
            tensor = index
        else:  # on the CPU, whatever torch.set_default_device says
            tensor = torch.as_tensor(index, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"index: expected integers {shape}, got {index!r}") from None
    if tensor.is_nested:
        raise TypeError(f"index: expected integers {shape}, got a nested tensor")
    if tensor.numel() == 0:
        raise ValueError(
            "index: an empty selection trains nothing; leave the parameter out of the plan instead"
        )
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(
            f"index: expected integers {shape}, got {tensor.dtype}; a bool mask goes to"
            " sft.from_mask"
        )
    wanted = (tensor.size(0), columns) if columns and tensor.dim() else (tensor.numel(),)
    if tuple(tensor.shape) != wanted:
        raise ValueError(f"index: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device.type == "meta":
        raise ValueError("index: expected a tensor with data, got one on the meta device")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise TypeError(
            f"index: expected a dense tensor of integers, got {tensor.layout}, {tensor.dtype}"
        )
    return tensor.detach().to(torch.int64, copy=True).contiguous()


def check_order(index: Tensor) -> None:
    """Raise IndexError for negative numbers, ValueError for those that do not rise."""
    if index.min() < 0:
        raise IndexError(f"index: expected non-negative numbers, got {int(index.min())}")
    rising = _rises(index[:-1], index[1:])
    if rising.all():
        return
    at = int((~rising).nonzero()[0])
    first, second = index[at].tolist(), index[at + 1].tolist()
    how = "duplicated" if first == second else "unsorted"
    raise ValueError(
        f"index: expected sorted numbers without duplicates, got {first} then {second} at"
        f" position {at} ({how}); torch.unique(index, dim=0) mends both"
    )


def _rises(a: Tensor, b: Tensor) -> Tensor:
    """Bool [n]: whether each of `a` comes before its number of `b`, by the first column that
    differs.
    """
    if a.dim() == 1:
        return a < b
    rises = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    for column in reversed(range(a.size(1))):
        x, y = a[:, column], b[:, column]
        rises = (x < y) | ((x == y) & rises)
    return rises
