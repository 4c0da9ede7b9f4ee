"""masked_adamw_: one AdamW step over every selected entry, written through into the weights.

The op takes lists with an item a tensor; what is here is about the `Call` that `_adamw_call` makes
of them, in which each tensor has a name. How it is stored: `_adamw_state.StateFormat`.
"""

from typing import Any

import torch
from torch import Tensor

from ._adamw_backends import on_cpu_, on_cuda_, on_triton_
from ._adamw_call import SCHEMA, Call, call_of
from ._adamw_state import StateFormat
from ._adamw_tensor import Settings
from ._adamw_variation import ages_of, factor_of
from ._registry import Whole, op, reference


def adamw_ref(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    age: float | Tensor,
    settings: Settings,
    factor: Tensor | None = None,
    origin: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One AdamW step on one tensor, `torch.optim.AdamW`'s: the new (value, exp_avg, exp_avg_sq).

    age: how many steps were taken with this one, by all entries or (fp64, like p) by each. factor:
    what the update is multiplied with, decay included. origin: what decay goes towards.
    """
    lr, beta1, beta2 = settings.read_lr(), settings.beta1, settings.beta2
    m = lerp_ref(m, g, 1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    step_size: Any = lr / (1 - beta1**age)
    root_correction: Any = (1 - beta2**age) ** 0.5
    decay_rate: Any = lr * settings.weight_decay
    if isinstance(age, Tensor):
        step_size, root_correction = step_size.to(p.dtype), root_correction.to(p.dtype)
    if factor is not None:
        step_size, decay_rate = step_size * factor, decay_rate * factor
    decayed = p * (1 - decay_rate) if origin is None else p - (p - origin) * decay_rate
    # torch's root in fp32 is off by a bit for every fifth number on the CPU
    root = v.double().sqrt().to(v.dtype)
    return decayed - step_size * m / (root / root_correction + settings.eps), m, v


def lerp_ref(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """`torch.lerp`'s formula, from the nearer end: weight 0 gives `start` and weight 1 `end`,
    whatever the other is.
    """
    weight = torch.tensor(weight, dtype=start.dtype, device="cpu").item()
    return start + (end - start) * weight if weight < 0.5 else end - (end - start) * (1 - weight)


def _check(call: Call) -> None:
    call.check()


@op(
    SCHEMA,
    takes=call_of,
    shapes=_check,
    cpu=Whole(on_cpu_),
    cuda=Whole(on_cuda_),
    triton=on_triton_,
)
def masked_adamw_(call: Call) -> None:
    """One AdamW step (Loshchilov & Hutter, 2019) over all tensors of a device, in few launches.

    In place; per tensor `torch.optim.AdamW`'s update, then `scatter_selected_(weight, value, …)`.
    Arguments: see `AdamWTensor`. Keywords: lr, beta1, beta2, eps, weight_decay; lrs (tensors that
    lr is read from when the step runs, also in a CUDA graph); maximize; grad_scale (gradients are
    divided by it); found_inf (nonzero on entry: nothing changes); skip_nonfinite (look for inf and
    NaN in every gradient first; if there is one set found_inf to 1 and change nothing); corrections
    and seeds (how values and moments are stored in 16 bits: see `_rounding`); absmaxes (moments in
    8 bits: see `_eight_bit`); generations, births, factors and origins (what differs from entry to
    entry: see `_adamw_variation`). steps advance by one. Raises ValueError or TypeError that names
    the argument, before anything is written.
    """
    if call.is_skipped():
        return
    for t in call.tensors:
        format = StateFormat.of(t)
        t.step += 1
        p, m, v = format.read(t)  # fp32, or fp64 for fp64
        g = t.grad.to(p.dtype) * call.flags.gradient_factor()
        origin = None if t.origin is None else t.origin.to(p.dtype)
        stepped = adamw_ref(p, g, m, v, ages_of(t), t.settings, factor_of(t, p), origin)
        format.write(t, *stepped)
        if t.weight is not None and t.layout is not None:
            reference("scatter_selected_")(t.weight, t.value, *t.layout)
