"""Kept: what a SelectiveAdamW keeps of each parameter beside its step, in which dtypes, and made
new.
"""

from typing import NamedTuple

import torch

from ..nn.steps import owner_of
from ..ops._adamw_state import SIXTEEN_BITS, State
from ..ops._eight_bit import num_blocks

EIGHT_BIT_LEAST = (
    4096  # entries, as in bitsandbytes: smaller tensors would save nothing that counts
)
ABSMAXES = "exp_avg_absmax", "exp_avg_sq_absmax"


class Kept(NamedTuple):
    """How the state is stored."""

    stochastic_rounding: bool = False
    correction: bool = False
    optim_bits: int = 32

    def check(self):
        """Raise ValueError for settings that do not go together."""
        if self.stochastic_rounding and self.correction:
            raise ValueError(
                "correction: with it nothing is rounded, so it does not go with"
                " stochastic_rounding=True"
            )
        if isinstance(self.optim_bits, bool) or self.optim_bits not in (8, 32):
            raise ValueError(f"optim_bits: expected 32 or 8, got {self.optim_bits!r}")

    def check_parameter(self, p, name):
        """Raise ValueError for a parameter that this way of storing state is not for. name: for the
        message.
        """
        is_values = owner_of(p) is not None
        if self.stochastic_rounding and is_values and p.dtype not in SIXTEEN_BITS:
            raise ValueError(
                f"stochastic_rounding: {name} is {p.dtype}, and only 16-bit values are rounded by"
                " chance; sft.convert(..., values_dtype=torch.bfloat16) makes them so"
            )
        if self.correction and p.dtype != torch.bfloat16 and (is_values or p.dtype in SIXTEEN_BITS):
            raise ValueError(
                f"correction: {name} is {p.dtype}, and a correction goes with bfloat16; "
                "sft.convert(..., values_dtype=torch.bfloat16) makes values so"
            )

        if self.optim_bits == 8 and p.dtype == torch.float64:
            raise ValueError(
                f"optim_bits: {name} is {p.dtype}, and moments in 8 bits go with at most 32 bits"
            )

    def rounds(self, p):
        """Whether what is stored of p in 16 bits is rounded by chance."""
        return self.stochastic_rounding and p.dtype in SIXTEEN_BITS

    def dtypes(self, p):
        """{name: dtype} of the tensors that are kept of p: each in its shape, but an absmax has one
        number a block.
        """
        corrected = self.correction and p.dtype == torch.bfloat16 and p.numel()
        eight_bit = self.optim_bits == 8 and p.numel() >= EIGHT_BIT_LEAST
        moment = torch.uint8 if eight_bit else torch.float32 if corrected else p.dtype
        dtypes = {"exp_avg": moment, "exp_avg_sq": moment}
        if eight_bit:
            dtypes.update(exp_avg_absmax=torch.float32, exp_avg_sq_absmax=torch.float32)
        if corrected:
            dtypes["correction"] = torch.int16
        return dtypes

    def new(self, p):
        """The state of p before its first step."""
        step = torch.zeros((), dtype=torch.float32, device=p.device)
        return {
            "step": step,
            **{name: _zeros(name, p, dtype) for name, dtype in self.dtypes(p).items()},
        }

    def described(self) -> str:
        """For messages."""
        return (
            "SelectiveAdamW("
            + ", ".join(f"{name}={setting}" for name, setting in self._asdict().items())
            + ")"
        )


def _zeros(name, p, dtype):
    return (
        p.new_zeros(num_blocks(p.numel()), dtype=dtype)
        if name in ABSMAXES
        else torch.zeros_like(p, dtype=dtype)
    )


def state_of(p, state, seed):
    """What the op knows of it."""
    absmaxes = (state.get(name) for name in ABSMAXES)
    return State(p, state["exp_avg"], state["exp_avg_sq"], state.get("correction"), seed, *absmaxes)
