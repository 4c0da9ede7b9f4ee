"""How the native core knows a tensor of masked_adamw_: its row of addresses, sizes and settings."""

import torch

from . import _native
from ._adamw_state import check_state
from .layout import check_layout, values_shape


def row_of(state, step, weight=None, *layout):
    """(what stands before the gradient in the row, what stands between that and the settings); None
    as in `rows_of`.
    """
    through = (0, 0, None) if weight is None else _written_through(state.value, weight, *layout)
    row = _row(state, state.value, step, through, ())
    return row and (row[0], row[2:])


def rows_of(c):
    """How the native core knows each tensor of a `Call`; None for one that it does not take as it
    is, or that does not fit.
    """
    linked = zip(c.values, c.weights, c.kinds, c.indices, c.blocks[::2], c.blocks[1::2])
    through = [_written_through(*each) for each in linked]
    through += [(0, 0, None)] * (len(c.values) - len(through))
    lr_at = [0] * len(c.values) if c.lrs is None else [lr.data_ptr() for lr in c.lrs]
    hyper = zip(c.lr, c.beta1, c.beta2, c.eps, c.weight_decay, lr_at)
    return list(map(_row, c.states(), c.grads, c.steps, through, hyper))


def _row(state, grad, step, through, hyper):
    value, exp_avg, exp_avg_sq, *_ = state
    dtype = _native.DTYPES.get(value.dtype)
    if dtype is None or through is None or step.dtype != torch.float32 or step.numel() != 1:
        return None
    plain = state.plain
    if not (_native.alike(value, grad, exp_avg, exp_avg_sq) if plain else _fits(state, grad)):
        return None
    addresses = (
        value.data_ptr(),
        grad.data_ptr(),
        exp_avg.data_ptr(),
        exp_avg_sq.data_ptr(),
        step.data_ptr(),
    )
    return *addresses, value.numel(), dtype, *through, None if plain else _storage(state), *hyper


def _fits(state, grad):
    """As `_native.alike`, for state that is stored in dtypes of its own."""
    check_state(state)
    beside = [t for t in (state.exp_avg, state.exp_avg_sq, state.correction) if t is not None]
    in_order = all(t.stride() == state.value.stride() for t in beside) and all(
        t.is_contiguous() for t in state.absmaxes
    )
    return in_order and _native.alike(state.value, grad)


def _storage(state):
    """How the native core knows what else there is to a state: the correction, the seed, two
    absmaxes.
    """
    correction, *absmaxes = (
        0 if t is None else t.data_ptr()
        for t in (state.correction, state.exp_avg_absmax, state.exp_avg_sq_absmax)
    )
    return correction, -1 if state.seed is None else state.seed, *absmaxes


def _written_through(value, weight, kind, index, block_h, block_w):
    """The address, dtype and layout of a weight; None as in `rows_of`."""
    dtype, shape = _native.DTYPES.get(weight.dtype), weight.shape
    if dtype is None or len(shape) != 2 or not (weight.is_contiguous() and index.is_contiguous()):
        return None
    check_layout(kind, index, block_h, block_w)
    if value.shape != values_shape(kind, index, block_h, block_w, shape):
        return None
    return weight.data_ptr(), dtype, _native.layout(kind, index, block_h, block_w, shape)
