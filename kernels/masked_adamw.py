"""masked_adamw_: one AdamW step over many compact values, written through into the dense weights.

A device table holds the addresses of a group of tensors (same dtypes and kind), so the launches do
not grow with the number of tensors: the check of the gradients, the steps with their bias
corrections, then one update a group.
"""

import torch
import triton
import triton.language as tl

from .adamw_table import (
    AGES,
    BLOCK_H,
    BLOCK_W,
    CHUNK,
    COEFFICIENTS,
    COLUMNS,
    COUNT,
    EXP_AVG,
    EXP_AVG_SQ,
    FACTOR,
    FACTOR_RUN,
    FIELDS,
    FIRST_CHUNK,
    GENERATION,
    GRAD,
    INDEX,
    NUM,
    ORIGIN,
    ROWS,
    STRIDE_M,
    STRIDE_N,
    TENSOR,
    VALUES,
    WEIGHT,
    M,
    N,
    Variation,
    group,
    to_device,
    upload,
)
from .layout import TRITON_DTYPES, address, check_tensors, locate, on_device, round_to


@triton.jit
def _pointer(row_ptr, FIELD: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(row_ptr + FIELD).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _unless_found(found_inf_ptr, count):
    """`count`, or 0 to leave everything as it is."""
    if found_inf_ptr is not None:
        count = tl.where(tl.load(found_inf_ptr) == 0, count, 0)
    return count


@triton.jit
def _chunk(chunk_ptr, table_ptr, found_inf_ptr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """This program's table row, first entry (int64) and how many entries of its tensor there are to
    do.
    """
    pid = tl.program_id(0)
    row_ptr = table_ptr + tl.load(chunk_ptr + pid) * FIELDS
    start = (pid - tl.load(row_ptr + FIRST_CHUNK)) * BLOCK
    count = tl.load(row_ptr + COUNT)
    if ALIGNED:  # here, for triton 3.6 forgets it of what a function returned
        count = tl.multiple_of(count, 8)
    return row_ptr, start, _unless_found(found_inf_ptr, count)


@triton.jit
def _nonfinite_kernel(
    chunk_ptr,  # [num_chunks] table row of each chunk, int32
    table_ptr,  # [num_tensors, FIELDS]
    found_inf_ptr,  # [1]
    VALUE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row_ptr, start, count = _chunk(chunk_ptr, table_ptr, None, ALIGNED, BLOCK)
    offs = start + tl.arange(0, BLOCK)
    g = tl.load(_pointer(row_ptr, GRAD, VALUE, ALIGNED) + offs, mask=offs < count, other=0.0)
    g = g.to(tl.float64 if VALUE == tl.float64 else tl.float32)
    bad = (g != g) | (tl.abs(g) == float("inf"))
    # Every writer writes the same.
    tl.store(found_inf_ptr, 1.0, mask=tl.max(bad.to(tl.int32), axis=0) > 0)


@triton.jit
def _steps_kernel(
    step_ptrs,  # [num_tensors] addresses of float32 scalars
    hyper_ptr,  # [5, num_tensors] lr, beta1, beta2, eps, weight_decay, float64
    coefficient_ptr,  # [num_tensors, COEFFICIENTS] float64
    found_inf_ptr,  # [1] or None
    num_tensors,
    BLOCK: tl.constexpr,
):
    """step += 1, then what the update needs of it.

    Its own launch, as every chunk of a tensor reads the same step.
    """
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_tensors
    lr = tl.load(hyper_ptr + offs, mask=mask, other=0.0)
    beta1 = tl.load(hyper_ptr + num_tensors + offs, mask=mask, other=0.5)
    beta2 = tl.load(hyper_ptr + 2 * num_tensors + offs, mask=mask, other=0.5)
    eps = tl.load(hyper_ptr + 3 * num_tensors + offs, mask=mask, other=1.0)
    weight_decay = tl.load(hyper_ptr + 4 * num_tensors + offs, mask=mask, other=0.0)
    mask = offs < _unless_found(found_inf_ptr, num_tensors)
    steps = tl.load(step_ptrs + offs, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(steps, mask=mask, other=0.0) + 1
    tl.store(steps, step, mask=mask)
    step = step.to(tl.float64)
    correction1 = 1 - tl.exp(step * tl.log(beta1))  # beta ** step
    correction2 = 1 - tl.exp(step * tl.log(beta2))
    c_ptrs = coefficient_ptr + offs * COEFFICIENTS
    tl.store(c_ptrs, 1 - lr * weight_decay, mask=mask)
    tl.store(c_ptrs + 1, 1 - beta1, mask=mask)
    tl.store(c_ptrs + 2, beta2, mask=mask)
    tl.store(c_ptrs + 3, 1 - beta2, mask=mask)
    tl.store(c_ptrs + 4, lr / correction1, mask=mask)
    tl.store(c_ptrs + 5, tl.sqrt(correction2), mask=mask)
    tl.store(c_ptrs + 6, eps, mask=mask)
    tl.store(c_ptrs + 7, lr * weight_decay, mask=mask)


@triton.jit
def _ages_kernel(
    tensor_ptr,  # [num_ages] whose generation it is, int32
    birth_ptrs,  # [num_ages] addresses of float32: the step when it began
    step_ptrs,  # [num_tensors] addresses of float32 scalars, of the step to be taken already
    hyper_ptr,  # [5, num_tensors] float64
    coefficient_ptr,  # [num_ages, COEFFICIENTS] float64
    num_ages,
    num_tensors,
    BLOCK: tl.constexpr,
):
    """What the update needs of each age."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num_ages
    tensor = tl.load(tensor_ptr + offs, mask=mask, other=0)
    lr = tl.load(hyper_ptr + tensor)
    beta1 = tl.load(hyper_ptr + num_tensors + tensor)
    beta2 = tl.load(hyper_ptr + 2 * num_tensors + tensor)
    step = tl.load(tl.load(step_ptrs + tensor).to(tl.pointer_type(tl.float32)))
    births = tl.load(birth_ptrs + offs, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    age = step.to(tl.float64) - tl.load(births, mask=mask, other=0.0).to(tl.float64)
    c_ptrs = coefficient_ptr + offs * COEFFICIENTS
    tl.store(c_ptrs + 4, lr / (1 - tl.exp(age * tl.log(beta1))), mask=mask)
    tl.store(c_ptrs + 5, tl.sqrt(1 - tl.exp(age * tl.log(beta2))), mask=mask)


@triton.jit
def _unravel(row_ptr, start, BLOCK: tl.constexpr, KIND: tl.constexpr):
    """(b, m, n) in values [num, M, N] of BLOCK entries from `start`.

    One 64-bit division, 32-bit ones an entry.
    """
    inner = tl.arange(0, BLOCK)
    if KIND == "entries":
        b, m, n = tl.zeros_like(inner), tl.zeros_like(inner), start + inner
    else:
        size_n = tl.load(row_ptr + N)
        size = tl.load(row_ptr + M) * size_n if KIND == "blocks" else size_n
        inner += (start % size).to(tl.int32)
        b = (start // size).to(tl.int32) + inner // size.to(tl.int32)
        inner = inner % size.to(tl.int32)
        if KIND == "blocks":
            # `locate` loads the index of b unmasked.
            b = tl.minimum(b, tl.load(row_ptr + NUM).to(tl.int32) - 1)
            m, n = inner // size_n.to(tl.int32), inner % size_n.to(tl.int32)
        else:
            m, n = b, inner
    return b, m, n


@triton.jit
def _adamw(
    p, g, m, v, c_ptr, age_ptr, factor, origin,
    SCALED: tl.constexpr, TO_ORIGIN: tl.constexpr, MATH: tl.constexpr,
):  # fmt: skip
    """One step of decoupled weight decay Adam (Loshchilov and Hutter, 2019).

    age_ptr: the coefficients of an age, one for all or one for each; factor: of the update, decay
    included; origin: what decay goes towards.
    """
    rate = tl.load(c_ptr + 7).to(MATH)
    shrink = tl.load(c_ptr).to(MATH)
    if SCALED:
        rate *= factor
        shrink = 1 - rate
    if TO_ORIGIN:
        p -= (p - origin) * rate
    else:
        p *= shrink
    # The gradient's share in exp_avg; as in torch.lerp, the nearer end is where it starts from.
    share = tl.load(c_ptr + 1).to(MATH)
    m = tl.where(share < 0.5, m, g) + (g - m) * tl.where(share < 0.5, share, share - 1)
    v = v * tl.load(c_ptr + 2).to(MATH) + g * g * tl.load(c_ptr + 3).to(MATH)
    step_size = tl.load(age_ptr + 4).to(MATH)
    sqrt_correction2 = tl.load(age_ptr + 5).to(MATH)
    if SCALED:
        step_size *= factor
    eps = tl.load(c_ptr + 6).to(MATH)
    if MATH == tl.float64:
        p -= step_size * (m / (tl.sqrt(v) / sqrt_correction2 + eps))
    else:  # plain / and sqrt are approximate in float32
        p -= step_size * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), sqrt_correction2) + eps)
    return p, m, v


@triton.jit
def _masked_adamw_kernel(
    chunk_ptr,  # [num_chunks] table row of each chunk, int32
    table_ptr,  # [num_tensors, FIELDS]
    coefficient_ptr,  # [num_tensors, COEFFICIENTS] float64
    grad_scale_ptr,  # [1] or None
    found_inf_ptr,  # [1] or None
    VALUE: tl.constexpr,
    WEIGHT_DTYPE: tl.constexpr,
    INDEX_DTYPE: tl.constexpr,
    KIND: tl.constexpr,
    FLAT: tl.constexpr,
    AGED: tl.constexpr,
    SCALED: tl.constexpr,
    ORIGIN_DTYPE: tl.constexpr,  # None: decay goes to zero
    MAXIMIZE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    MATH: tl.constexpr = tl.float64 if VALUE == tl.float64 else tl.float32
    row_ptr, start, count = _chunk(chunk_ptr, table_ptr, found_inf_ptr, ALIGNED, BLOCK)
    offs = start + tl.arange(0, BLOCK)
    mask = offs < count
    p_ptrs = _pointer(row_ptr, VALUES, VALUE, ALIGNED) + offs
    m_ptrs = _pointer(row_ptr, EXP_AVG, VALUE, ALIGNED) + offs
    v_ptrs = _pointer(row_ptr, EXP_AVG_SQ, VALUE, ALIGNED) + offs
    g = tl.load(_pointer(row_ptr, GRAD, VALUE, ALIGNED) + offs, mask=mask, other=0.0).to(MATH)
    p = tl.load(p_ptrs, mask=mask, other=0.0).to(MATH)
    m = tl.load(m_ptrs, mask=mask, other=0.0).to(MATH)
    v = tl.load(v_ptrs, mask=mask, other=0.0).to(MATH)
    if grad_scale_ptr is not None:
        scale = tl.load(grad_scale_ptr).to(MATH)
        g = g / scale if MATH == tl.float64 else tl.div_rn(g, scale)
    if MAXIMIZE:
        g = -g
    c_ptr = coefficient_ptr + tl.load(row_ptr + TENSOR) * COEFFICIENTS
    age_ptr, factor, origin = c_ptr, 1.0, 0.0
    if AGED:
        generation_ptrs = _pointer(row_ptr, GENERATION, tl.uint8, False) + offs
        generation = tl.load(generation_ptrs, mask=mask, other=0).to(tl.int32)
        age_ptr = coefficient_ptr + (tl.load(row_ptr + AGES) + generation) * COEFFICIENTS
    if SCALED:
        factor_ptr = _pointer(row_ptr, FACTOR, tl.float32, False)
        run = tl.load(row_ptr + FACTOR_RUN)
        factor = tl.load(factor_ptr + offs // run, mask=mask, other=1.0).to(MATH)
    if ORIGIN_DTYPE is not None:
        origin_ptrs = _pointer(row_ptr, ORIGIN, ORIGIN_DTYPE, False) + offs
        origin = tl.load(origin_ptrs, mask=mask, other=0.0).to(MATH)
    p, m, v = _adamw(
        p, g, m, v, c_ptr, age_ptr, factor, origin, SCALED, ORIGIN_DTYPE is not None, MATH
    )
    p = round_to(p, VALUE)
    tl.store(p_ptrs, p, mask=mask)
    tl.store(m_ptrs, round_to(m, VALUE), mask=mask)
    tl.store(v_ptrs, round_to(v, VALUE), mask=mask)
    if KIND != "all":
        b, values_m, values_n = _unravel(row_ptr, start, BLOCK, KIND)
        size_m, size_n = tl.load(row_ptr + M), tl.load(row_ptr + N)
        block_h, block_w = tl.load(row_ptr + BLOCK_H), tl.load(row_ptr + BLOCK_W)
        index_ptr = _pointer(row_ptr, INDEX, INDEX_DTYPE, False)
        row, column = locate(
            index_ptr, b, values_m, values_n, size_m, size_n, block_h, block_w, KIND
        )
        columns = tl.load(row_ptr + COLUMNS)
        if KIND == "blocks":
            mask = mask & (row < tl.load(row_ptr + ROWS)) & (column < columns)
        weight_ptr = _pointer(row_ptr, WEIGHT, WEIGHT_DTYPE, False)
        stride_wm, stride_wn = tl.load(row_ptr + STRIDE_M), tl.load(row_ptr + STRIDE_N)
        w_ptrs = address(weight_ptr, row, column, columns, stride_wm, stride_wn, KIND, FLAT)
        tl.store(w_ptrs, round_to(p, WEIGHT_DTYPE), mask=mask)


def masked_adamw_triton_(
    values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks,
    *, lr, beta1, beta2, eps, weight_decay,
    maximize=False, grad_scale=None, found_inf=None, skip_nonfinite=False, lrs=None,
    generations=None, births=None, factors=None, origins=None,
):  # fmt: skip
    """One AdamW step of every values[i].

    The first len(weights) also go to the selected entries of weights[i].

    lr to weight_decay hold one number a tensor, steps one float32 each, as do lrs, which count
    instead of lr. Nothing is read back to the host: grad_scale (gradients are divided by it) and
    found_inf (nonzero: nothing changes) stay on the device. generations to origins: what differs
    from entry to entry; a tensor without elements where nothing does.
    """
    if not values:
        return
    state = dict(grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, steps=steps)
    hyper = dict(lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)
    for name, given in {**state, **hyper}.items():
        if len(given) != len(values):
            raise ValueError(
                f"{name} must have one item for each of {len(values)} values, got {len(given)}"
            )
    grads = [
        g if g.stride() == p.stride() or g.shape != p.shape else torch.empty_like(p).copy_(g)
        for p, g in zip(values, grads, strict=True)
    ]
    indices = [index.contiguous() for index in indices]
    states = zip(values, grads, exp_avgs, exp_avg_sqs, strict=True)
    variation = Variation(generations, births, factors, origins)
    groups = group(states, steps, weights, kinds, indices, blocks, variation)
    extras = {
        "grad_scale": grad_scale,
        "found_inf": found_inf,
        **{f"lrs[{i}]": lr for i, lr in enumerate(lrs or ())},
    }
    check_tensors(**{"values[0]": values[0]}, **{n: x for n, x in extras.items() if x is not None})
    device = values[0].device
    if skip_nonfinite and found_inf is None:
        found_inf = torch.zeros(1, device=device)
    with on_device(values[0]):
        tables = [(*upload(rows, device), *key) for key, rows in groups.items()]
        if skip_nonfinite:
            for chunks, table, dtype, *_, aligned in tables:
                _nonfinite_kernel[chunks.shape](
                    chunks,
                    table,
                    found_inf,
                    VALUE=TRITON_DTYPES[dtype],
                    ALIGNED=aligned,
                    BLOCK=CHUNK,
                    enable_fp_fusion=True,
                )
        ages = variation.ages
        coefficients = torch.empty(
            len(values) + len(ages), COEFFICIENTS.value, dtype=torch.float64, device=device
        )
        hyper = to_device([list(each) for each in hyper.values()], torch.float64, device)
        if lrs is not None:
            rates = torch.stack([lr.view(()) for lr in lrs]).to(torch.float64)
            hyper = torch.cat([rates[None], hyper[1:]])
        step_ptrs = to_device([step.data_ptr() for step in steps], torch.int64, device)
        _steps_kernel[(triton.cdiv(len(values), 128),)](
            step_ptrs, hyper, coefficients, found_inf, len(values), BLOCK=128, enable_fp_fusion=True
        )
        if ages:
            _ages_kernel[(triton.cdiv(len(ages), 128),)](
                to_device([i for i, _ in ages], torch.int32, device),
                to_device([address for _, address in ages], torch.int64, device),
                step_ptrs, hyper, coefficients[len(values) :], len(ages), len(values), BLOCK=128,
                enable_fp_fusion=True,
            )  # fmt: skip
        for chunks, table, dtype, *weight_of, aged, scaled, origin, aligned in tables:
            weight_dtype, index_dtype, kind, flat = weight_of
            _masked_adamw_kernel[chunks.shape](
                chunks, table, coefficients, grad_scale, found_inf,
                VALUE=TRITON_DTYPES[dtype], WEIGHT_DTYPE=TRITON_DTYPES[weight_dtype],
                INDEX_DTYPE=TRITON_DTYPES[index_dtype], KIND=kind, FLAT=flat,
                AGED=aged, SCALED=scaled,
                ORIGIN_DTYPE=None if origin is None else TRITON_DTYPES[origin],
                MAXIMIZE=maximize, ALIGNED=aligned, BLOCK=CHUNK, enable_fp_fusion=True,
            )  # fmt: skip
