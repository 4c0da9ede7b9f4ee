"""masked_adamw_: one AdamW step over every selected entry of a model, written through into the dense weights."""

import torch

from . import _native
from ._library import define, implement, wrote
from .layout import check_layout, check_matrix, check_values
from .scatter_selected import scatter_selected_ref_

SCHEMA = (
    "masked_adamw_(Tensor(a!)[] values, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
    "Tensor(e!)[] weights, str[] kinds, Tensor[] indices, int[] blocks, *, float[] lr, float[] beta1, float[] beta2, "
    "float[] eps, float[] weight_decay, bool maximize=False, Tensor? grad_scale=None, Tensor(f!)? found_inf=None, "
    "bool skip_nonfinite=False) -> ()"
)


def adamw_ref_(value, grad, exp_avg, exp_avg_sq, step, lr, beta1, beta2, eps, weight_decay):
    """One AdamW step on one tensor: `torch.optim.AdamW`'s formula in fp32 (fp64 for fp64), rounded once on the way out."""
    wide = torch.promote_types(torch.float32, value.dtype)
    p, g, m, v = (t.to(wide) for t in (value, grad, exp_avg, exp_avg_sq))
    p = p * (1 - lr * weight_decay)
    m = m + (g - m) * (1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    denominator = v.sqrt() / (1 - beta2**step) ** 0.5 + eps
    p = p - (lr / (1 - beta1**step)) * m / denominator
    for tensor, new in ((value, p), (exp_avg, m), (exp_avg_sq, v)):
        tensor.copy_(new)


def masked_adamw_ref_(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, *, lr, beta1, beta2,
                      eps, weight_decay, maximize=False, grad_scale=None, found_inf=None, skip_nonfinite=False):
    _check(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, lr=lr, beta1=beta1, beta2=beta2,
           eps=eps, weight_decay=weight_decay, grad_scale=grad_scale, found_inf=found_inf, skip_nonfinite=skip_nonfinite)
    if found_inf is not None and found_inf.item():
        return
    if skip_nonfinite and not all(g.isfinite().all() for g in grads):
        found_inf.fill_(1)
        return
    scale = (-1 if maximize else 1) / (1 if grad_scale is None else grad_scale.item())
    for i, (value, grad, step) in enumerate(zip(values, grads, steps)):
        step += 1
        grad = grad.to(torch.promote_types(torch.float32, grad.dtype)) * scale
        adamw_ref_(value, grad, exp_avgs[i], exp_avg_sqs[i], step.item(), lr[i], beta1[i], beta2[i], eps[i], weight_decay[i])
        if i < len(weights):
            scatter_selected_ref_(weights[i], value, kinds[i], indices[i], *blocks[2 * i:2 * i + 2])


def _check(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, *, lr, beta1, beta2, eps,
           weight_decay, maximize=False, grad_scale=None, found_inf=None, skip_nonfinite=False):
    count = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps, "lr": lr, "beta1": beta1,
             "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    for name, items in count.items():
        if len(items) != len(values):
            raise ValueError(f"{name}: expected {len(values)} items, one a tensor of values, got {len(items)}")
    if not len(weights) == len(kinds) == len(indices) == len(blocks) // 2 <= len(values):
        raise ValueError(f"weights: expected one kind, index and block size a weight and at most {len(values)} weights, got "
                         f"{len(weights)}, {len(kinds)}, {len(indices)} and {len(blocks)} // 2")
    if skip_nonfinite and found_inf is None:
        raise ValueError("found_inf: skip_nonfinite needs a float32 tensor of one element to report to, got None")
    scalars = [("steps", step) for step in steps] + [("grad_scale", grad_scale), ("found_inf", found_inf)]
    for name, scalar in scalars:
        if scalar is not None and scalar.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(scalar.shape)}")
        if scalar is not None and scalar.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32, got {scalar.dtype}")
    for value, *others in zip(values, grads, exp_avgs, exp_avg_sqs):
        if not value.is_floating_point():
            raise TypeError(f"values: expected a floating-point dtype, got {value.dtype}")
        for name, other in zip(("grads", "exp_avgs", "exp_avg_sqs"), others):
            if other.shape != value.shape or other.dtype != value.dtype:
                raise ValueError(f"{name}: expected {value.dtype} {tuple(value.shape)} as its values, got {other.dtype} "
                                 f"{tuple(other.shape)}")
    for i, (weight, kind, index) in enumerate(zip(weights, kinds, indices)):
        check_matrix(weight)
        check_layout(kind, index, *blocks[2 * i:2 * i + 2])
        check_values(values[i], kind, index, *blocks[2 * i:2 * i + 2], weight.shape)


def masked_adamw_cpu_(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, *, lr, beta1, beta2,
                      eps, weight_decay, maximize=False, grad_scale=None, found_inf=None, skip_nonfinite=False):
    keywords = dict(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, maximize=maximize,
                    grad_scale=grad_scale, found_inf=found_inf, skip_nonfinite=skip_nonfinite)
    _check(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, **keywords)
    grads, indices = [g.contiguous() for g in grads], [index.contiguous() for index in indices]
    if not _native.served(*values, *exp_avgs, *exp_avg_sqs, *weights):
        return masked_adamw_ref_(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, **keywords)
    if found_inf is not None and found_inf.item():
        return
    table = []
    for i, value in enumerate(values):
        linked = i < len(weights)
        layout = _native.layout(kinds[i], indices[i], *blocks[2 * i:2 * i + 2], weights[i].shape) if linked else None
        table.append((
            value.data_ptr(), grads[i].data_ptr(), exp_avgs[i].data_ptr(), exp_avg_sqs[i].data_ptr(), steps[i].data_ptr(),
            value.numel(), _native.DTYPES[value.dtype], weights[i].data_ptr() if linked else 0,
            _native.DTYPES[weights[i].dtype] if linked else 0, layout, lr[i], beta1[i], beta2[i], eps[i], weight_decay[i]))
    inv_scale = 1.0 if grad_scale is None else 1.0 / grad_scale.item()
    if _native.C.masked_adamw_(table, maximize, inv_scale, skip_nonfinite, torch.get_num_threads()):
        found_inf.fill_(1)
        return
    wrote(*values, *exp_avgs, *exp_avg_sqs, *steps, *weights)


def masked_adamw_triton_(values, grads, exp_avgs, exp_avg_sqs, steps, weights, *layouts, **keywords):
    from sparse_ft.kernels import masked_adamw as kernels

    _check(values, grads, exp_avgs, exp_avg_sqs, steps, weights, *layouts, **keywords)
    kernels.masked_adamw_triton_(values, grads, exp_avgs, exp_avg_sqs, steps, weights, *layouts, **keywords)
    wrote(*values, *exp_avgs, *exp_avg_sqs, *steps, *weights)


define(SCHEMA, fake=_check)
implement("masked_adamw_", reference=masked_adamw_ref_, cpu=masked_adamw_cpu_, triton=masked_adamw_triton_)


def masked_adamw_(values, grads, exp_avgs, exp_avg_sqs, steps, weights=(), kinds=(), indices=(), blocks=(), **keywords):
    """One AdamW step (Loshchilov & Hutter, 2019) over all tensors of one device, in place, in a few launches.

    Per tensor, `torch.optim.AdamW`'s update, then `scatter_selected_(weight, value, …)`. The first `len(weights)` values are
    written through into `weights` ([rows, columns] each) at the layout (`kinds`, `indices`, `blocks` = bh, bw, bh, bw, …);
    the rest are plain parameters. values, grads, exp_avgs and exp_avg_sqs share shape and dtype; steps are float32 scalars,
    advanced by one.
    Keywords: lr, beta1, beta2, eps, weight_decay (one float a tensor); maximize; grad_scale (gradients are divided by it);
    found_inf (float32, one element: nonzero on entry skips the step); skip_nonfinite (look for inf and NaN in every gradient
    first; if there is one set found_inf to 1 and change nothing). Raises ValueError that names the argument.
    """
    torch.ops.sparse_ft.masked_adamw_(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, **keywords)
