"""One tensor of a masked_adamw_ step, with a name for everything that the step reads and writes."""

import dataclasses

import torch

from .layout import Layout


@dataclasses.dataclass(slots=True)
class Settings:
    """The hyperparameters of a step; `lr_at`, one float32, is read when it runs and counts for
    lr.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lr_at: torch.Tensor | None = None

    def read_lr(self) -> float:
        """Waits for the device that holds `lr_at`."""
        return self.lr if self.lr_at is None else self.lr_at.item()


@dataclasses.dataclass(slots=True)
class Flags:
    """What is the same for every tensor of a call. Scalars are float32 tensors of one element."""

    maximize: bool = False
    grad_scale: torch.Tensor | None = None  # gradients are divided by it
    found_inf: torch.Tensor | None = None  # nonzero: nothing changes
    skip_nonfinite: bool = False  # look at every gradient first, and set found_inf

    def gradient_factor(self) -> float:
        """What gradients are multiplied with. Waits for the device that holds `grad_scale`."""
        sign = -1 if self.maximize else 1
        return sign if self.grad_scale is None else sign / self.grad_scale.item()


@dataclasses.dataclass(slots=True)
class AdamWTensor:
    """A tensor that steps. What is None is not there: `StateFormat` says what goes together.

    The fields from `exp_avg` to `births` are those of the optimiser's state under the same names.
    """

    value: torch.Tensor  # any shape and floating dtype
    grad: torch.Tensor  # like value
    exp_avg: torch.Tensor  # in the shape of value, in its dtype or in what the format says
    exp_avg_sq: torch.Tensor  # likewise
    step: torch.Tensor  # float32, one element: how many steps were taken
    settings: Settings
    correction: torch.Tensor | None = None  # int16 like value: with it the fp32 master
    exp_avg_absmax: torch.Tensor | None = None  # float32, one a block of 128 entries
    exp_avg_sq_absmax: torch.Tensor | None = None
    generation: torch.Tensor | None = None  # uint8 like value: entries of one have one age
    births: torch.Tensor | None = None  # float32 [generations]: `step` when each began
    seed: int | None = None  # in [0, 2^48): what is stored in 16 bits is rounded by chance
    weight: torch.Tensor | None = None  # [rows, columns]: shows the values after the step
    layout: Layout | None = None  # of the values in the weight
    # What the update of an entry is multiplied with: float32, shaped as value or as its first
    # dimension.
    factor: torch.Tensor | None = None
    origin: torch.Tensor | None = None  # like value, any floating dtype: weight decay goes there

    @property
    def is_varied(self) -> bool:
        """Whether the step differs from entry to entry."""
        varied = self.generation, self.births, self.factor, self.origin
        return any(tensor is not None for tensor in varied)

    def written(self) -> list[torch.Tensor]:
        """What a step changes."""
        state = self.value, self.exp_avg, self.exp_avg_sq, self.step, self.weight
        stored = self.correction, self.exp_avg_absmax, self.exp_avg_sq_absmax
        return [tensor for tensor in (*state, *stored) if tensor is not None]
