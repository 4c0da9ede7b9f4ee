"""masked_adamw_: one AdamW step over every selected entry of a model, written through into the
dense weights.
"""

from operator import attrgetter
from typing import NamedTuple

import torch

from . import _native
from ._adamw_rows import rows_of
from ._adamw_state import State, check_like, check_state, read_state, write_state
from ._library import HAS_TRITON, define, implement, plain, wrote
from .layout import check_layout, check_matrix, check_values
from .scatter_selected import scatter_selected_ref_

SCHEMA = (
    "masked_adamw_(Tensor(a!)[] values, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[]"
    " exp_avg_sqs, Tensor(d!)[] steps, Tensor(e!)[] weights, str[] kinds, Tensor[] indices, int[]"
    " blocks, *, float[] lr, float[] beta1, float[] beta2, float[] eps, float[] weight_decay, bool"
    " maximize=False, Tensor? grad_scale=None, Tensor(f!)? found_inf=None, bool"
    " skip_nonfinite=False, Tensor[]? lrs=None, Tensor(g!)[]? corrections=None, int[]? seeds=None,"
    " Tensor(h!)[]? absmaxes=None) -> ()"
)


class Call(NamedTuple):
    """The op's arguments. The first len(weights) values have a layout and are written through; the
    rest are plain.
    """

    values: list  # any shape each; grads have the same shape and dtype
    grads: list
    exp_avgs: (
        list  # in the shape and dtype of values; float32 beside a correction; uint8 with absmaxes
    )
    exp_avg_sqs: list  # likewise
    steps: list  # float32, one element each
    weights: list  # [rows, columns] each, any floating dtype
    kinds: list
    indices: list
    blocks: list  # block_h, block_w, block_h, block_w, …
    lr: list  # one float a tensor, as the four below
    beta1: list
    beta2: list
    eps: list
    weight_decay: list
    maximize: bool = False
    grad_scale: torch.Tensor | None = None  # float32, one element, as found_inf
    found_inf: torch.Tensor | None = None
    skip_nonfinite: bool = False
    lrs: list | None = None  # float32, one element each; read when the step runs, instead of lr
    corrections: list | None = (
        None  # int16 in the shape of bfloat16 values; no elements: none for that tensor
    )
    seeds: list | None = (
        None  # in [0, 2^48): what is stored in 16 bits is rounded by chance; -1: to the nearest
    )
    absmaxes: list | None = (
        # two a tensor, float32 [ceil(n / 128)]: moments have 8 bits; without elements: they do not
        None
    )

    def hyper(self, i):
        lr = self.lr[i] if self.lrs is None else self.lrs[i].item()
        return lr, self.beta1[i], self.beta2[i], self.eps[i], self.weight_decay[i]

    def state(self, i):
        correction = (
            self.corrections[i] if self.corrections and self.corrections[i].numel() else None
        )
        seed = self.seeds[i] if self.seeds and self.seeds[i] != -1 else None
        absmaxes = (
            self.absmaxes[2 * i : 2 * i + 2]
            if self.absmaxes and self.absmaxes[2 * i].numel()
            else ()
        )
        return State(
            self.values[i], self.exp_avgs[i], self.exp_avg_sqs[i], correction, seed, *absmaxes
        )

    def states(self):
        if self.corrections or self.seeds or self.absmaxes:
            return map(self.state, range(len(self.values)))
        return map(State, self.values, self.exp_avgs, self.exp_avg_sqs)

    def layout(self, i):
        return self.kinds[i], self.indices[i], *self.blocks[2 * i : 2 * i + 2]


ONE_A_TENSOR = (
    "grads",
    "exp_avgs",
    "exp_avg_sqs",
    "steps",
    "lr",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
)
_one_a_tensor = attrgetter(*ONE_A_TENSOR)


def lerp_ref(start, end, weight):
    """`torch.lerp`'s formula, from the nearer end: weight 0 gives `start` and weight 1 `end`,
    whatever the other is.
    """
    weight = torch.tensor(weight, dtype=start.dtype).item()
    if weight < 0.5:
        return start + (end - start) * weight
    return end - (end - start) * (1 - weight)


def adamw_ref(p, g, m, v, step, lr, beta1, beta2, eps, weight_decay):
    """One AdamW step on one tensor, `torch.optim.AdamW`'s formula: the new (value, exp_avg,
    exp_avg_sq).
    """
    p = p * (1 - lr * weight_decay)
    m = lerp_ref(m, g, 1 - beta1)
    v = v * beta2 + g * g * (1 - beta2)
    root = (
        v.double().sqrt().to(v.dtype)
    )  # torch's in fp32 is off by a bit for every fifth number on the CPU
    denominator = root / (1 - beta2**step) ** 0.5 + eps
    return p - (lr / (1 - beta1**step)) * m / denominator, m, v


def masked_adamw_ref_(*arguments, **keywords):
    c = _checked(*arguments, **keywords)
    if c.found_inf is not None and c.found_inf.item():
        return
    if c.skip_nonfinite and not all(g.isfinite().all() for g in c.grads):
        c.found_inf.fill_(1)
        return
    scale = (-1 if c.maximize else 1) / (1 if c.grad_scale is None else c.grad_scale.item())
    for i, (grad, step) in enumerate(zip(c.grads, c.steps)):
        step += 1
        state = c.state(i)
        p, m, v = read_state(state)  # fp32, or fp64 for fp64
        new = adamw_ref(p, grad.to(p.dtype) * scale, m, v, step.item(), *c.hyper(i))
        write_state(state, new, step.item())
        if i < len(c.weights):
            scatter_selected_ref_(c.weights[i], c.values[i], *c.layout(i))


def _checked(*arguments, **keywords):
    c = _checked_lists(*arguments, **keywords)
    for step in c.steps:
        _check_scalar("steps", step)
    for i, (value, grad) in enumerate(zip(c.values, c.grads)):
        check_state(c.state(i))
        check_like("grads", grad, value, value.dtype)
    for i, weight in enumerate(c.weights):
        check_matrix(weight)
        check_layout(*c.layout(i))
        check_values(c.values[i], *c.layout(i), weight.shape)
    return c


def _checked_lists(*arguments, **keywords):
    """The call, checked as far as that takes no look at its tensors one by one."""
    c = Call(*arguments, **keywords)
    count = len(c.values)
    for name, given in zip(ONE_A_TENSOR, _one_a_tensor(c)):
        if len(given) != count:
            raise ValueError(
                f"{name}: expected {count} items, one a tensor of values, got {len(given)}"
            )
    for name, given in ("lrs", c.lrs), ("corrections", c.corrections), ("seeds", c.seeds):
        if given is not None and len(given) != count:
            raise ValueError(
                f"{name}: expected None or {count} items, one a tensor of values, got {len(given)}"
            )
    if c.absmaxes is not None and len(c.absmaxes) != 2 * count:
        raise ValueError(
            f"absmaxes: expected None or {2 * count} items, two a tensor, got {len(c.absmaxes)}"
        )
    if (
        not 2 * len(c.weights)
        == 2 * len(c.kinds)
        == 2 * len(c.indices)
        == len(c.blocks)
        <= 2 * count
    ):
        raise ValueError(
            f"weights: expected one kind, index and block size a weight and at most {count}"
            f" weights, got {len(c.weights)}, {len(c.kinds)}, {len(c.indices)} and"
            f" {len(c.blocks)} / 2"
        )
    if c.skip_nonfinite and c.found_inf is None:
        raise ValueError(
            "found_inf: skip_nonfinite needs a float32 tensor of one element to report to, got None"
        )
    _check_scalar("grad_scale", c.grad_scale)
    _check_scalar("found_inf", c.found_inf)
    for lr in c.lrs or ():
        _check_scalar("lrs", lr)
    return c


def _check_scalar(name, scalar):
    if scalar is not None and scalar.numel() != 1:
        raise ValueError(f"{name}: expected one element, got shape {tuple(scalar.shape)}")
    if scalar is not None and scalar.dtype != torch.float32:
        raise TypeError(f"{name}: expected torch.float32, got {scalar.dtype}")


def _fake(*arguments, **keywords):
    _checked(*arguments, **keywords)


def masked_adamw_cpu_(*arguments, **keywords):
    c, rows = _called(*arguments, **keywords)
    if None in rows:
        return masked_adamw_ref_(*arguments, **keywords)
    step_rows(rows, _written(c), c.maximize, c.grad_scale, c.found_inf, c.skip_nonfinite)


def _called(*arguments, **keywords):
    """The call and its rows, which read and write what the call names; it must live until they are
    used.
    """
    c = _checked_lists(*arguments, **keywords)
    rows = rows_of(c)
    if None in rows:
        c = _checked(*arguments, **keywords)
        grads = [
            g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
            for p, g in zip(c.values, c.grads)
        ]
        c = c._replace(grads=grads, indices=[index.contiguous() for index in c.indices])
        rows = rows_of(c)
    return c, rows


def _written(c):
    return (
        *c.values,
        *c.exp_avgs,
        *c.exp_avg_sqs,
        *c.steps,
        *c.weights,
        *(c.corrections or ()),
        *(c.absmaxes or ()),
    )


def step_rows(rows, written, maximize, grad_scale, found_inf, skip_nonfinite):
    """`masked_adamw_` on tensors in host memory that are known as rows; written: those
    that change.
    """
    if found_inf is not None and found_inf.item():
        return
    inv_scale = 1.0 if grad_scale is None else 1.0 / grad_scale.item()
    try:
        skipped = _native.C.masked_adamw_(
            rows, maximize, inv_scale, skip_nonfinite, torch.get_num_threads()
        )
    except IndexError:  # found on the way: an index was edited after it was checked
        wrote(*written)
        raise
    if skipped:
        found_inf.fill_(1)
    else:
        wrote(*written)


def masked_adamw_cuda_(*arguments, **keywords):
    """Nothing is read back to the host, so that a CUDA graph can hold the step; a replay reads
    `lrs` anew, no other setting.
    """
    c, rows = _called(*arguments, **keywords)
    if not rows:
        return
    device = c.values[0].device
    _check_device(c, device)
    if None in rows:  # a strided weight, say
        return (masked_adamw_triton_ if HAS_TRITON else masked_adamw_ref_)(*arguments, **keywords)
    grad_scale, found_inf = (0 if x is None else x.data_ptr() for x in (c.grad_scale, c.found_inf))
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        _native.C.masked_adamw_cuda_(
            rows, c.maximize, grad_scale, found_inf, c.skip_nonfinite, stream
        )
    wrote(*_written(c), *(() if c.found_inf is None else (c.found_inf,)))


def _check_device(c, device):
    """A kernel that follows an address into the memory of another device takes the
    process with it.
    """
    scalars = dict(grad_scale=[c.grad_scale], found_inf=[c.found_inf])
    lists = (
        "values",
        "grads",
        "exp_avgs",
        "exp_avg_sqs",
        "steps",
        "weights",
        "indices",
        "lrs",
        "corrections",
        "absmaxes",
    )
    for name, tensors in {**{name: getattr(c, name) for name in lists}, **scalars}.items():
        for tensor in tensors or ():
            if tensor is not None and tensor.device != device:
                raise ValueError(
                    f"{name}: expected every tensor on {device} as the first of values, got one on"
                    f" {tensor.device}"
                )


def masked_adamw_triton_(*arguments, **keywords):
    from sparse_ft.kernels import masked_adamw as kernels

    c = _checked(*arguments, **keywords)
    if not all(c.state(i).plain for i in range(len(c.values))):
        return masked_adamw_ref_(*arguments, **keywords)
    stored = "corrections", "seeds", "absmaxes"
    kernels.masked_adamw_triton_(
        *arguments, **{name: given for name, given in keywords.items() if name not in stored}
    )
    wrote(*_written(c))


define(SCHEMA, fake=_fake)
_on_cpu = implement(
    "masked_adamw_",
    reference=masked_adamw_ref_,
    cpu=masked_adamw_cpu_,
    cuda=masked_adamw_cuda_,
    triton=masked_adamw_triton_,
)


def masked_adamw_(
    values,
    grads,
    exp_avgs,
    exp_avg_sqs,
    steps,
    weights=(),
    kinds=(),
    indices=(),
    blocks=(),
    **keywords,
):
    """One AdamW step (Loshchilov & Hutter, 2019) over all tensors of one device, in place, in a few
    launches.

    Per tensor, `torch.optim.AdamW`'s update, then `scatter_selected_(weight, value, …)`. Arguments:
    see `Call`. Keywords: lr, beta1, beta2, eps, weight_decay; lrs (tensors that lr is read from
    when the step runs, also in a CUDA graph); maximize; grad_scale (gradients are divided by it);
    found_inf (nonzero on entry: nothing changes); skip_nonfinite (look for inf and NaN in every
    gradient first; if there is one set found_inf to 1 and change nothing); corrections and seeds
    (how values and moments are stored in 16 bits: see `_rounding`); absmaxes (moments in 8 bits:
    see `_eight_bit`). steps advance by one. Raises ValueError or TypeError that names the argument,
    before anything is written.
    """
    tensors = [*values, *grads, *exp_avgs, *exp_avg_sqs, *steps, *weights, *indices]
    for name in ("lrs", "corrections", "absmaxes"):
        tensors += keywords.get(name) or ()
    call = _on_cpu if plain(tensors) else torch.ops.sparse_ft.masked_adamw_
    call(values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks, **keywords)
