"""scale_updates: the steps of single entries or rows are longer or shorter than the others'."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .converted import holders_of
from .messages import check_module, described, did_you_mean
from .nn.foreign import refuse_quantised
from .nn.selected import Selected


def scale_updates(
    model: nn.Module, factors: Mapping[str, float | torch.Tensor | None]
) -> nn.Module:
    """Multiply what `SelectiveAdamW` adds to selected entries, decay included. Returns the model.

    A learning rate for each of them: a scaled gradient changes nothing under Adam. factors:
    {parameter name: factor}; a number, a tensor shaped as the parameter's values or as their first
    dimension (rows of `Rows`, rows of the matrix of `Columns`, blocks), one shaped as the
    parameter, of which the selected entries are taken, or None for none. Not negative, finite. It
    goes along with copies, devices and `sft.reselect` (1 for entries that join), not with a
    `state_dict`. Other optimisers know nothing of it, and the first step of one says so. Raises
    KeyError, TypeError or ValueError that names the parameter; nothing has changed then.
    """
    check_module("model", model)
    if not isinstance(factors, Mapping):
        raise TypeError(
            f"factors: expected a mapping {{parameter name: factor}}, got {described(factors)}"
        )
    holders = holders_of(model)
    found = {}
    for name, factor in factors.items():
        if name not in holders:
            raise KeyError(
                f"factors: {name!r} has no selected entries{did_you_mean(name, list(holders))}; a"
                " parameter that trains whole takes another lr in a parameter group of its own"
            )
        refuse_quantised("factors", holders[name], "give it a learning rate of its own instead")
        found[name] = None if factor is None else _factor(name, holders[name], factor)
    for name, factor in found.items():
        holders[name]._sparse_ft_state.factor = factor
    return model


def _as_numbers(name: str, factor: Any) -> torch.Tensor:
    """Real numbers in memory, of a number, a tensor or nested lists."""
    if not isinstance(factor, torch.Tensor):
        try:
            factor = torch.tensor(factor, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(
                f"factors: {name!r}: expected a number, a tensor or None, got {described(factor)}"
            ) from None
    if factor.is_complex() or factor.dtype == torch.bool:
        raise TypeError(f"factors: {name!r}: expected real numbers, got {factor.dtype}")
    if factor.is_meta or factor.layout is not torch.strided:
        where = "the meta device" if factor.is_meta else str(factor.layout)
        raise ValueError(f"factors: {name!r}: expected a dense tensor with data, got {where}")
    return factor.detach()


def _factor(name: str, holder: Selected, given: float | torch.Tensor) -> torch.Tensor:
    """float32, shaped as values or as their first dimension, on their device."""
    values, state = holder._parameters["values"], holder._sparse_ft_state
    factor = _as_numbers(name, given)
    if not (factor.isfinite().all() and (factor >= 0).all()):
        raise ValueError(
            f"factors: {name!r}: expected finite numbers of at least 0, got {described(given)}"
        )
    factor = factor.to(values.device, torch.float32)
    if factor.dim() == 0:
        return factor.expand(values.shape[:1]).contiguous()
    if factor.shape in (values.shape, values.shape[:1]):
        return factor.clone(memory_format=torch.contiguous_format)
    if factor.shape == holder._weight().shape:
        return state.selection.gather(factor.reshape(state.matrix_shape))
    raise ValueError(
        f"factors: {name!r}: expected a number or a shape of {tuple(values.shape)},"
        f" {tuple(values.shape[:1])} or {tuple(holder._weight().shape)}, got {tuple(factor.shape)}"
    )
