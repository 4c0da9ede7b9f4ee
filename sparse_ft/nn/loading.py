"""What a checkpoint knows of the selection that it was made under, without any plan."""

from typing import Any

import torch
from torch import nn

from ..parallel.dtensors import address_of

_COMPARED = torch.float64, torch.float32, torch.bfloat16, torch.float16


def check_loaded(module: Any, state_dict: dict, prefix: str) -> None:
    """Raise RuntimeError where a state_dict holds values of another selection than the module's.

    module: a `Selected`. prefix: of the module's own keys.
    The weight that comes with them tells: its selected entries are the values, rounded to its
    dtype. Two units in the last place are let pass, which averages of several checkpoints may be
    off by. Where one of both is missing or does not fit, this has nothing to say.
    """
    state, own = module._sparse_ft_state, module._weight_or_none()
    if own is None or own.numel() != state.matrix_shape[0] * state.matrix_shape[1]:
        return  # somebody deleted or replaced it
    keys = module._keys(prefix)
    found: list[Any] = [state_dict.get(key) for key in keys]
    weight, values = found
    for tensor, like in (weight, own), (values, module._parameters["values"]):
        plain = type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta
        if not plain or tensor.dtype not in _COMPARED or tensor.shape != like.shape:
            return
    dtype = max(weight.dtype, values.dtype, own.dtype, key=lambda each: torch.finfo(each).eps)
    with torch.no_grad():
        matrix = weight.detach().contiguous().view(state.matrix_shape)
        there = state.selection.gather(matrix).to(dtype).double()
        wanted = values.detach().to(matrix.device, dtype).double()
        limits = torch.finfo(dtype)
        slack = dict(rtol=2 * limits.eps, atol=2 * limits.eps * limits.smallest_normal)
        if torch.allclose(there, wanted, **slack, equal_nan=True):
            return
        off = int((~torch.isclose(there, wanted, **slack, equal_nan=True)).sum())
    raise RuntimeError(
        f"state_dict: {off} of {values.numel()} numbers of its {keys[1]!r} are not what its"
        f" {keys[0]!r} holds at the entries that are selected here ({state.selection!r}): it was"
        " made under another selection, or one of the two was edited. Convert with the plan that"
        f" it was made under (sft.load, Plan.load), or leave {keys[1]!r} out to load the weight"
        " alone."
    )


def is_same_memory(tensor: Any, own: Any) -> bool:
    """Whether what a state_dict holds is a parameter's own memory."""
    if not isinstance(tensor, torch.Tensor) or not isinstance(own, torch.Tensor):
        return False
    address = address_of(tensor)
    return address != 0 and address == address_of(own) and tensor.numel() == own.numel()
