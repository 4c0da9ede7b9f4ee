"""Storage: how a SelectiveAdamW keeps values and moments. All of its options about that are here.

Values in 16 bits without an fp32 master (`sft.convert(..., values_dtype=torch.bfloat16)`) lose
updates below half a unit in the last place. Two options keep them; plain parameters in full
precision are left as they are:

stochastic_rounding: values and moments in 16 bits are rounded up or down by chance, right in
expectation (Gupta et al., Deep Learning with Limited Numerical Precision, 2015). seed: what
decides, with a parameter's place among the others, the step and the entry; neither threads nor the
backend do, and a run resumed from `state_dict` goes on with the same bits.

correction: state has an int16 that with the bfloat16 value is the fp32 master, bit for bit; moments
are fp32 then. As many bytes as fp32 values take, but for a gradient of 2 an entry instead of 4.

optim_bits: 8 keeps exp_avg and exp_avg_sq in 8 bits (uint8, and one float32 absmax a block of 128
entries, as they lie in memory), with the dynamic codes of Dettmers et al., 8-bit Optimizers via
Block-wise Quantization, 2022: 2.06 bytes an entry instead of 8. The step itself is fp32, and values
are stored as without it. Parameters of fewer than 4096 entries keep full moments, as in
bitsandbytes; float64 is refused. An inf or NaN in a gradient reaches all 128 entries of its block.
"""

import dataclasses

import torch

from ..nn.steps import owner_of
from ..ops._adamw_state import SIXTEEN_BITS, StateFormat
from ..ops._rounding import seed_of
from ..parallel.dtensors import is_sharded_tensor

# Entries, as in bitsandbytes: smaller tensors would save nothing that counts.
EIGHT_BIT_LEAST = 4096


@dataclasses.dataclass(slots=True, frozen=True)
class Storage:
    """The options of one optimiser. Raises ValueError for those that do not go together."""

    stochastic_rounding: bool = False
    correction: bool = False
    optim_bits: int = 32

    def __post_init__(self) -> None:
        if self.stochastic_rounding and self.correction:
            raise ValueError(
                "correction: with it nothing is rounded, so it does not go with"
                " stochastic_rounding=True"
            )
        if isinstance(self.optim_bits, bool) or self.optim_bits not in (8, 32):
            raise ValueError(f"optim_bits: expected 32 or 8, got {self.optim_bits!r}")

    def __str__(self) -> str:
        settings = dataclasses.asdict(self).items()
        return f"SelectiveAdamW({', '.join(f'{name}={setting}' for name, setting in settings)})"

    def check(self, p: torch.Tensor, name: str) -> None:
        """Raise ValueError for a parameter, `name` in messages, that is not kept in this way."""
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
        if self.optim_bits == 8 and is_sharded_tensor(p):
            raise ValueError(
                f"optim_bits: {name} is split over the ranks (fully_shard), and blocks of 8-bit"
                " moments would not go with another number of ranks; use optim_bits=32"
            )
        if self.optim_bits == 8 and p.dtype == torch.float64:
            raise ValueError(
                f"optim_bits: {name} is {p.dtype}, and moments in 8 bits go with at most 32 bits"
            )

    def format_of(self, p: torch.Tensor) -> StateFormat:
        """How this parameter is kept."""
        return StateFormat(
            by_chance=self.stochastic_rounding and p.dtype in SIXTEEN_BITS,
            corrected=self.correction and p.dtype == torch.bfloat16 and p.numel() > 0,
            eight_bit=self.optim_bits == 8 and p.numel() >= EIGHT_BIT_LEAST,
        )

    def seed_of(self, p: torch.Tensor, seed: int, number: int) -> int | None:
        """What p is rounded by chance with; None: it is not. seed: of its group. number: its place
        among the others.
        """
        if not (self.stochastic_rounding and p.dtype in SIXTEEN_BITS):
            return None
        return seed_of(seed, number)


def check_seed(seed: int) -> None:
    """Raise ValueError for what is no integer."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed: expected an integer, got {seed!r}")
