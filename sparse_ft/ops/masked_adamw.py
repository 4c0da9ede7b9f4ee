"""masked_adamw_: one AdamW step over every selected entry, written through into the weights.

How a tensor's state is stored, and handed to the compiled part: `_adamw_state.StateFormat`. The
arguments as one `AdamWTensor` a tensor: `_adamw_call`.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ._adamw_call import OPTIONAL, Call, Tensors, arguments_of, call_of
from ._adamw_native import native_call, step_on_cpu_, step_on_cuda_
from ._adamw_state import StateFormat
from ._adamw_variation import ages_of, factor_of
from ._library import HAS_TRITON, define, implement, plain, wrote
from ._registry import reference

SCHEMA = (
    "masked_adamw_(Tensor(a!)[] values, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[]"
    " exp_avg_sqs, Tensor(d!)[] steps, Tensor(e!)[] weights, str[] kinds, Tensor[] indices, int[]"
    " blocks, *, float[] lr, float[] beta1, float[] beta2, float[] eps, float[] weight_decay, bool"
    " maximize=False, Tensor? grad_scale=None, Tensor(f!)? found_inf=None, bool"
    " skip_nonfinite=False, Tensor[]? lrs=None, Tensor(g!)[]? corrections=None, int[]? seeds=None,"
    " Tensor(h!)[]? absmaxes=None, Tensor[]? generations=None, Tensor[]? births=None, Tensor[]?"
    " factors=None, Tensor[]? origins=None) -> ()"
)


def adamw_ref(
    p: torch.Tensor,
    g: torch.Tensor,
    m: torch.Tensor,
    v: torch.Tensor,
    age: float | torch.Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    factor: torch.Tensor | None = None,
    origin: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One AdamW step on one tensor, `torch.optim.AdamW`'s: the new (value, exp_avg, exp_avg_sq).

    age: how many steps were taken with this one, by all entries or (fp64, like p) by each. factor:
    what the update is multiplied with, decay included. origin: what decay goes towards.
    """
    m = lerp_ref(m, g, 1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    step_size: Any = lr / (1 - beta1**age)
    root_correction: Any = (1 - beta2**age) ** 0.5
    decay_rate: Any = lr * weight_decay
    if isinstance(age, torch.Tensor):
        step_size, root_correction = step_size.to(p.dtype), root_correction.to(p.dtype)
    if factor is not None:
        step_size, decay_rate = step_size * factor, decay_rate * factor
    decayed = p * (1 - decay_rate) if origin is None else p - (p - origin) * decay_rate
    # torch's root in fp32 is off by a bit for every fifth number on the CPU
    root = v.double().sqrt().to(v.dtype)
    denominator = root / root_correction + eps
    return decayed - step_size * m / denominator, m, v


def lerp_ref(start: torch.Tensor, end: torch.Tensor, weight: float) -> torch.Tensor:
    """`torch.lerp`'s formula, from the nearer end: weight 0 gives `start` and weight 1 `end`,
    whatever the other is.
    """
    weight = torch.tensor(weight, dtype=start.dtype).item()
    if weight < 0.5:
        return start + (end - start) * weight
    return end - (end - start) * (1 - weight)


def masked_adamw_ref_(*arguments: Any, **keywords: Any) -> None:
    call = call_of(*arguments, **keywords).check()
    flags = call.flags
    if flags.found_inf is not None and flags.found_inf.item():
        return
    if flags.skip_nonfinite and not all(t.grad.isfinite().all() for t in call.tensors):
        flags.found_inf.fill_(1)
        return
    scale = 1 if flags.grad_scale is None else flags.grad_scale.item()
    sign = (-1 if flags.maximize else 1) / scale
    for t in call.tensors:
        format, settings = StateFormat.of(t), t.settings
        t.step += 1
        p, m, v = format.read(t)  # fp32, or fp64 for fp64
        new_p, new_m, new_v = adamw_ref(
            p,
            t.grad.to(p.dtype) * sign,
            m,
            v,
            age=ages_of(t),
            lr=settings.read_lr(),
            beta1=settings.beta1,
            beta2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            factor=factor_of(t, p),
            origin=None if t.origin is None else t.origin.to(p.dtype),
        )
        format.write(t, new_p, new_m, new_v)
        if t.weight is not None:
            reference("scatter_selected_")(t.weight, t.value, *t.layout)


def _fake(*arguments: Any, **keywords: Any) -> None:
    call_of(*arguments, **keywords).check()


def masked_adamw_cpu_(*arguments: Any, **keywords: Any) -> None:
    call = call_of(*arguments, **keywords)
    native = native_call(call)
    if native is None:
        return masked_adamw_ref_(*arguments, **keywords)
    step_on_cpu_(native, call.flags)


def masked_adamw_cuda_(*arguments: Any, **keywords: Any) -> None:
    """Nothing is read back to the host, so that a CUDA graph can hold the step; a replay reads
    `lrs` anew, no other setting.
    """
    call = call_of(*arguments, **keywords)
    if not call.tensors:
        return
    call.check_device()
    native = native_call(call)
    # a strided weight, say
    if native is None or any(t.is_varied for t in call.tensors):
        return (masked_adamw_triton_ if HAS_TRITON else masked_adamw_ref_)(*arguments, **keywords)
    step_on_cuda_(native, call.flags, call.tensors[0].value.device)


def masked_adamw_triton_(*arguments: Any, **keywords: Any) -> None:
    from sparse_ft.kernels import masked_adamw as kernels  # type: ignore[attr-defined]

    call = call_of(*arguments, **keywords).check()
    if not all(StateFormat.of(t).is_plain for t in call.tensors):
        return masked_adamw_ref_(*arguments, **keywords)
    positional, keywords = arguments_of(call)
    kernels.masked_adamw_triton_(*positional, **keywords)
    wrote(*call.written())


define(SCHEMA, fake=_fake)
_on_cpu = implement(
    "masked_adamw_",
    reference=masked_adamw_ref_,
    cpu=masked_adamw_cpu_,
    cuda=masked_adamw_cuda_,
    triton=masked_adamw_triton_,
)


def masked_adamw_(
    values: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    weights: Tensors = (),
    kinds: Sequence[str] = (),
    indices: Tensors = (),
    blocks: Sequence[int] = (),
    **keywords: Any,
) -> None:
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
    tensors = [*values, *grads, *exp_avgs, *exp_avg_sqs, *steps, *weights, *indices]
    for name in ("lrs", "absmaxes", *OPTIONAL):
        tensors += keywords.get(name) or ()
    call = _on_cpu if plain(tensors) else torch.ops.sparse_ft.masked_adamw_
    call(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, **keywords)


def masked_adamw_call_(call: Call) -> None:
    """`masked_adamw_` on tensors that are known by name."""
    positional, keywords = arguments_of(call)
    masked_adamw_(*positional, **keywords)
