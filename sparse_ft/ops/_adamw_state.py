"""How masked_adamw_ keeps the values and moments of one tensor: read as fp32 (fp64 over fp64),
written back. Plain PyTorch.
"""

from typing import NamedTuple

import torch

from ._eight_bit import dequantize, num_blocks, quantize
from ._rounding import join, random_words, round_by_chance, split

SIXTEEN_BITS = torch.bfloat16, torch.float16


class State(NamedTuple):
    """What a step changes of one tensor, but for its step number and its weight."""

    value: torch.Tensor
    exp_avg: (
        torch.Tensor
    )  # in the shape of value and in its dtype; fp32 beside a correction; uint8 with an absmax
    exp_avg_sq: torch.Tensor  # likewise
    correction: torch.Tensor | None = None  # int16: with a bfloat16 value the fp32 master
    seed: int | None = None  # what is stored in 16 bits is rounded by chance
    exp_avg_absmax: torch.Tensor | None = None  # fp32, one a block of 128 entries; both or neither
    exp_avg_sq_absmax: torch.Tensor | None = None

    @property
    def plain(self):
        return self.correction is None and self.seed is None and self.exp_avg_absmax is None

    @property
    def moments_dtype(self):
        if self.exp_avg_absmax is not None:
            return torch.uint8
        return self.value.dtype if self.correction is None else torch.float32

    @property
    def absmaxes(self):
        return () if self.exp_avg_absmax is None else (self.exp_avg_absmax, self.exp_avg_sq_absmax)


def check_state(state):
    """Raise ValueError or TypeError that names what does not go with the value."""
    dtype, correction, seed = state.value.dtype, state.correction, state.seed
    if not dtype.is_floating_point:
        raise TypeError(f"values: expected a floating-point dtype, got {dtype}")
    if correction is not None:
        if dtype != torch.bfloat16:
            raise TypeError(f"corrections: they go with values in bfloat16, got {dtype}")
        if seed is not None:
            raise ValueError(
                f"seeds: with a correction nothing is rounded, expected -1, got {seed}"
            )
        check_like("corrections", correction, state.value, torch.int16)
    if seed is not None:
        if dtype not in SIXTEEN_BITS:
            raise TypeError(
                f"seeds: only what is stored in 16 bits is rounded by chance, got values in {dtype}"
            )
        if not 0 <= seed < 1 << 48:
            raise ValueError(
                f"seeds: expected numbers in [0, 2^48), or -1 to round to the nearest, got {seed}"
            )
    if state.absmaxes and dtype == torch.float64:
        raise TypeError(
            f"absmaxes: moments in 8 bits go with values of at most 32 bits, got {dtype}"
        )
    for absmax in state.absmaxes:
        blocks = num_blocks(state.value.numel())
        if absmax.shape != (blocks,) or absmax.dtype != torch.float32:
            got = f"{absmax.dtype} {tuple(absmax.shape)}"
            raise ValueError(
                f"absmaxes: expected torch.float32 ({blocks},), one a block of the values, got"
                f" {got}"
            )
    for name in ("exp_avg", "exp_avg_sq"):
        check_like(f"{name}s", getattr(state, name), state.value, state.moments_dtype)


def check_like(name, tensor, value, dtype):
    if tensor.shape != value.shape or tensor.dtype != dtype:
        got = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(
            f"{name}: expected {dtype} {tuple(value.shape)} as its values have it, got {got}"
        )


def read_state(state):
    """(value, exp_avg, exp_avg_sq) in the dtype that the step is computed in."""
    wide = torch.promote_types(torch.float32, state.value.dtype)
    value = (
        state.value.to(wide) if state.correction is None else join(state.value, state.correction)
    )
    if not state.absmaxes:
        return value, state.exp_avg.to(wide), state.exp_avg_sq.to(wide)
    moments = zip((state.exp_avg, state.exp_avg_sq), state.absmaxes, (True, False))
    flat = (
        dequantize(_as_in_memory(codes, value), absmax, signed) for codes, absmax, signed in moments
    )
    return value, *(_in_memory_order(each, state.value) for each in flat)


def write_state(state, new, step):
    """Store new (value, exp_avg, exp_avg_sq), the results of step number `step`."""
    for stream, (tensor, wide) in enumerate(zip(state, new)):
        if stream and state.absmaxes:
            wide, absmax = quantize(_as_in_memory(wide, state.value), signed=stream == 1)
            state.absmaxes[stream - 1].copy_(absmax)
            wide = _in_memory_order(wide, state.value)
        elif tensor is state.value and state.correction is not None:
            wide, low = split(wide)
            state.correction.copy_(low)
        elif state.seed is not None and tensor.dtype in SIXTEEN_BITS:
            words = random_words(state.seed, step, tensor.numel(), stream, tensor.device)
            wide = round_by_chance(wide, _in_memory_order(words, tensor), tensor.dtype)
        tensor.copy_(wide)


def _dims_in_memory(tensor):
    return sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))


def _as_in_memory(tensor, like):
    """The numbers of `tensor` one after the other, in the order in which the entries of `like` lie
    in memory.
    """
    return tensor.permute(_dims_in_memory(like)).reshape(-1)


def _in_memory_order(flat, tensor):
    """`flat` in the shape of `tensor`, its numbers in the order in which the entries lie
    in memory.
    """
    dims = _dims_in_memory(tensor)
    return flat.view([tensor.size(d) for d in dims]).permute(
        sorted(range(tensor.dim()), key=dims.__getitem__)
    )
