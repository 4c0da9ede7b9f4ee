"""StateFormat: how masked_adamw_ keeps value and moments of a tensor.

It makes, reads and writes them, and hands them to the compiled part.
"""

import dataclasses
from typing import Any

import torch

from . import _native
from ._adamw_tensor import AdamWTensor
from ._adamw_variation import variation_lies_alike
from ._common import accumulator, check_floating
from ._eight_bit import dequantize, num_blocks, quantize
from ._memory_order import as_in_memory, in_memory_order
from ._rounding import join, random_words, round_by_chance, split

SIXTEEN_BITS = torch.bfloat16, torch.float16


@dataclasses.dataclass(slots=True, frozen=True)
class StateFormat:
    """Plain: value and moments in one dtype, rounded to the nearest.

    by_chance: what has 16 bits is rounded up or down by chance. corrected: bfloat16 values with an
    int16 that completes them to the fp32 master, and fp32 moments. eight_bit: moments as codes of
    8 bits with an absmax a block. Reading and writing is plain PyTorch.
    """

    by_chance: bool = False
    corrected: bool = False
    eight_bit: bool = False

    @classmethod
    def of(cls, t: AdamWTensor) -> "StateFormat":
        """The format of tensors that exist."""
        return cls(
            by_chance=t.seed is not None,
            corrected=t.correction is not None,
            eight_bit=t.exp_avg_absmax is not None,
        )

    @property
    def is_plain(self) -> bool:
        return not (self.by_chance or self.corrected or self.eight_bit)

    def moments_dtype(self, value: torch.Tensor) -> torch.dtype:
        if self.eight_bit:
            return torch.uint8
        return torch.float32 if self.corrected else value.dtype

    def dtypes(self, value: torch.Tensor) -> dict[str, torch.dtype]:
        """{name: dtype} of what is kept beside value and step."""
        moments = self.moments_dtype(value)
        dtypes = {"exp_avg": moments, "exp_avg_sq": moments}
        if self.eight_bit:
            dtypes |= {"exp_avg_absmax": torch.float32, "exp_avg_sq_absmax": torch.float32}
        if self.corrected:
            dtypes["correction"] = torch.int16
        return dtypes

    def shape(self, name: str, value: torch.Tensor) -> tuple[int, ...]:
        """The shape of what is kept under `name`."""
        return (num_blocks(value.numel()),) if name.endswith("absmax") else tuple(value.shape)

    def new(self, value: torch.Tensor) -> dict[str, torch.Tensor]:
        """What is kept before the first step, as an optimiser's state has it."""
        state = {"step": torch.zeros((), dtype=torch.float32, device=value.device)}
        for name, dtype in self.dtypes(value).items():
            if name.endswith("absmax"):
                state[name] = value.new_zeros(self.shape(name, value), dtype=dtype)
            else:
                state[name] = torch.zeros_like(value, dtype=dtype)
        return state

    def read(self, t: AdamWTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(value, exp_avg, exp_avg_sq) in the dtype that the step is computed in: fp32, or fp64."""
        wide = accumulator(t.value.dtype)
        value = t.value.to(wide) if t.correction is None else join(t.value, t.correction)
        if t.exp_avg_absmax is None or t.exp_avg_sq_absmax is None:
            return value, t.exp_avg.to(wide), t.exp_avg_sq.to(wide)
        exp_avg = dequantize(as_in_memory(t.exp_avg, value), t.exp_avg_absmax, signed=True)
        exp_avg_sq = dequantize(
            as_in_memory(t.exp_avg_sq, value), t.exp_avg_sq_absmax, signed=False
        )
        return value, in_memory_order(exp_avg, t.value), in_memory_order(exp_avg_sq, t.value)

    def write(
        self, t: AdamWTensor, value: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor
    ) -> None:
        """Store what `read` gave, changed by step number `t.step`."""
        if t.correction is not None:
            high, low = split(value)
            t.value.copy_(high)
            t.correction.copy_(low)
        else:
            self._store(t, t.value, value, stream=0)
        if t.exp_avg_absmax is not None and t.exp_avg_sq_absmax is not None:
            _store_codes(t.value, t.exp_avg, t.exp_avg_absmax, exp_avg, signed=True)
            _store_codes(t.value, t.exp_avg_sq, t.exp_avg_sq_absmax, exp_avg_sq, signed=False)
        else:
            self._store(t, t.exp_avg, exp_avg, stream=1)
            self._store(t, t.exp_avg_sq, exp_avg_sq, stream=2)

    def _store(self, t: AdamWTensor, stored: torch.Tensor, wide: torch.Tensor, stream: int) -> None:
        if t.seed is not None and stored.dtype in SIXTEEN_BITS:
            count = stored.numel()
            words = random_words(t.seed, t.step.item(), count, stream, stored.device)
            wide = round_by_chance(wide, in_memory_order(words, stored), stored.dtype)
        stored.copy_(wide)

    def native(self, t: AdamWTensor) -> Any:
        """`t` as the compiled part knows it, but for gradient and settings; None for one that it
        does not take as it is. It holds addresses: the tensors must stay where they are.
        """
        is_known = t.value.dtype in _native.DTYPES
        if not is_known or t.step.dtype != torch.float32 or t.step.numel() != 1:
            return None
        if not self._lies_alike(t):
            return None
        if not _can_be_written_through(t):
            return None
        if t.is_varied and not variation_lies_alike(t):
            return None
        return _native.C.AdamWTensor(
            values=t.value,
            exp_avg=t.exp_avg,
            exp_avg_sq=t.exp_avg_sq,
            step=t.step,
            seed=-1 if t.seed is None else t.seed,
            correction=t.correction,
            exp_avg_absmax=t.exp_avg_absmax,
            exp_avg_sq_absmax=t.exp_avg_sq_absmax,
            generation=t.generation,
            births=t.births,
            factor=t.factor,
            origin=t.origin,
            weight=t.weight,
            layout=t.layout,
        )

    def _lies_alike(self, t: AdamWTensor) -> bool:
        """Whether one walk through memory meets all that is kept of an entry."""
        if self.is_plain:
            return _native.alike(t.value, t.exp_avg, t.exp_avg_sq)
        self.check(t)
        stride = t.value.stride()
        if t.exp_avg.stride() != stride or t.exp_avg_sq.stride() != stride:
            return False
        if t.correction is not None and t.correction.stride() != stride:
            return False
        for absmax in (t.exp_avg_absmax, t.exp_avg_sq_absmax):
            if absmax is not None and not absmax.is_contiguous():
                return False
        return _native.alike(t.value)

    def check(self, t: AdamWTensor) -> None:
        """Raise ValueError or TypeError that names what does not go with the value."""
        check_floating("values", t.value)
        if t.correction is not None:
            _check_correction(t, t.correction)
        if t.seed is not None:
            _check_seed(t, t.seed)
        for absmax in (t.exp_avg_absmax, t.exp_avg_sq_absmax):
            if absmax is not None:
                _check_absmax(t, absmax)
        check_like("exp_avgs", t.exp_avg, t.value, self.moments_dtype(t.value))
        check_like("exp_avg_sqs", t.exp_avg_sq, t.value, self.moments_dtype(t.value))


def _check_correction(t: AdamWTensor, correction: torch.Tensor) -> None:
    if t.value.dtype != torch.bfloat16:
        raise TypeError(f"corrections: they go with values in bfloat16, got {t.value.dtype}")
    if t.seed is not None:
        raise ValueError(f"seeds: with a correction nothing is rounded, expected -1, got {t.seed}")
    check_like("corrections", correction, t.value, torch.int16)


def _can_be_written_through(t: AdamWTensor) -> bool:
    """Whether the compiled part finds the selected entries of the weight, where there is one, as it
    lies.
    """
    layout, weight = t.layout, t.weight
    if layout is None or weight is None:
        return True
    if weight.dtype not in _native.DTYPES or weight.dim() != 2:
        return False
    if not (weight.is_contiguous() and layout.index.is_contiguous()):
        return False
    layout.check()
    return t.value.shape == layout.values_shape(weight.shape)


def _store_codes(
    value: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor, wide: torch.Tensor, signed: bool
) -> None:
    new_codes, new_absmax = quantize(as_in_memory(wide, value), signed)
    absmax.copy_(new_absmax)
    codes.copy_(in_memory_order(new_codes, value))


def _check_seed(t: AdamWTensor, seed: int) -> None:
    if t.value.dtype not in SIXTEEN_BITS:
        raise TypeError(
            "seeds: only what is stored in 16 bits is rounded by chance, got values in"
            f" {t.value.dtype}"
        )
    if not 0 <= seed < 1 << 48:
        raise ValueError(
            f"seeds: expected numbers in [0, 2^48), or -1 to round to the nearest, got {seed}"
        )


def _check_absmax(t: AdamWTensor, absmax: torch.Tensor) -> None:
    if t.value.dtype == torch.float64:
        raise TypeError(
            f"absmaxes: moments in 8 bits go with values of at most 32 bits, got {t.value.dtype}"
        )
    blocks = num_blocks(t.value.numel())
    if absmax.shape != (blocks,) or absmax.dtype != torch.float32:
        got = f"{absmax.dtype} {tuple(absmax.shape)}"
        raise ValueError(
            f"absmaxes: expected torch.float32 ({blocks},), one a block of the values, got {got}"
        )


def check_like(name: str, tensor: torch.Tensor, value: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise ValueError unless `tensor` has the shape of `value` and this dtype."""
    if tensor.shape != value.shape or tensor.dtype != dtype:
        got = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(
            f"{name}: expected {dtype} {tuple(value.shape)} as its values have it, got {got}"
        )
