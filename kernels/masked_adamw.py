"""masked_adamw_: one AdamW step over many compact values, written through into the dense weights.

A device table holds the addresses of a group of tensors (same dtypes and kind), so the launches do
not grow with the number of tensors: the check of the gradients, the steps with their bias
corrections, then one update a group.
"""

import torch
import triton
import triton.language as tl

from .layout import (
    TRITON_DTYPES,
    address,
    check_layout,
    check_tensors,
    check_values,
    locate,
    matrix_strides,
    on_device,
    round_to,
)

# Fields of a table row, int64 each: addresses, sizes, then the layout (zeros for a plain
# parameter).
VALUES, GRAD, EXP_AVG, EXP_AVG_SQ, WEIGHT, INDEX = (tl.constexpr(i) for i in range(6))
COUNT, FIRST_CHUNK, TENSOR = (tl.constexpr(i) for i in range(6, 9))
ROWS, COLUMNS, STRIDE_M, STRIDE_N, NUM, M, N, BLOCK_H, BLOCK_W = (
    tl.constexpr(i) for i in range(9, 18)
)
FIELDS = tl.constexpr(18)
COEFFICIENTS = tl.constexpr(7)
# 8 entries a thread in 4 warps: two 128-bit loads in flight for each of the four float32 streams.
CHUNK = 1024


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
    count = _unless_found(found_inf_ptr, tl.load(row_ptr + COUNT))
    if ALIGNED:
        count = tl.multiple_of(count, 8)
    return row_ptr, start, count


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
def _adamw(p, g, m, v, c_ptr, MATH: tl.constexpr):
    """One step of decoupled weight decay Adam (Loshchilov and Hutter, 2019)."""
    p *= tl.load(c_ptr).to(MATH)
    # The gradient's share in exp_avg; as in torch.lerp, the nearer end is where it starts from.
    share = tl.load(c_ptr + 1).to(MATH)
    m = tl.where(share < 0.5, m, g) + (g - m) * tl.where(share < 0.5, share, share - 1)
    v = v * tl.load(c_ptr + 2).to(MATH) + g * g * tl.load(c_ptr + 3).to(MATH)
    step_size = tl.load(c_ptr + 4).to(MATH)
    sqrt_correction2 = tl.load(c_ptr + 5).to(MATH)
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
    p, m, v = _adamw(p, g, m, v, coefficient_ptr + tl.load(row_ptr + TENSOR) * COEFFICIENTS, MATH)
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


def _to_device(rows, dtype, device):
    """Small host data, pinned so that the copy joins the stream without waiting for it."""
    return torch.tensor(rows, dtype=dtype, pin_memory=device.type == "cuda").to(
        device, non_blocking=True
    )


def _dense(tensor):
    """Whether its elements fill memory without gaps or overlap, in any order
    (channels_last, say).
    """
    order = sorted(
        range(tensor.dim()), key=lambda d: (tensor.stride(d), tensor.size(d)), reverse=True
    )
    return tensor.permute(order).is_contiguous()


def _check_state(i, values, grad, exp_avg, exp_avg_sq, step):
    if not _dense(values):
        raise ValueError(
            f"values[{i}] must be dense, got {list(values.shape)} with strides {values.stride()}"
        )
    state = {
        f"values[{i}]": values,
        f"grads[{i}]": grad,
        f"exp_avgs[{i}]": exp_avg,
        f"exp_avg_sqs[{i}]": exp_avg_sq,
    }
    for name, tensor in state.items():
        if tensor.dtype != values.dtype:
            raise TypeError(
                f"{name} must have the dtype of values[{i}], {values.dtype}, got {tensor.dtype}"
            )
        if tensor.shape != values.shape or (
            tensor is not grad and tensor.stride() != values.stride()
        ):
            raise ValueError(
                f"{name} must have the shape and strides of values[{i}], {list(values.shape)} and"
                f" {values.stride()}, got {list(tensor.shape)} and {tensor.stride()}"
            )
    if step.dtype != torch.float32 or step.numel() != 1:
        raise TypeError(f"steps[{i}] must be one float32, got {list(step.shape)} of {step.dtype}")
    check_tensors(**state, **{f"steps[{i}]": step})


def _layout_fields(i, values, weight, kind, index, block_h, block_w):
    """(ROWS to BLOCK_W of the table row, whether flat positions address the weight)."""
    *strides, flat = matrix_strides(f"weights[{i}]", weight)
    walk, shape = check_layout(kind, index, block_h, block_w, *weight.shape)
    check_values(f"values[{i}]", values, shape)
    if not values.is_contiguous():
        raise ValueError(
            f"values[{i}] must be contiguous to be written through, got strides {values.stride()}"
        )
    check_tensors(**{f"values[{i}]": values, f"weights[{i}]": weight, "index": index})
    return [*weight.shape, *strides, *walk, block_h, block_w], flat


def _group(states, steps, weights, kinds, indices, blocks):
    """{what a launch specialises on: table rows}.

    A tensor without elements has a step, but no row.
    """
    groups = {}
    for i, state in enumerate(states):
        _check_state(i, *state, steps[i])
        addresses, count = [x.data_ptr() for x in state], state[0].numel()
        key, weight_and_index, fields = (torch.float32, torch.int32, "all", True), [0, 0], [0] * 9
        if i < len(weights):
            weight, index, kind = weights[i], indices[i], kinds[i]
            fields, flat = _layout_fields(
                i, state[0], weight, kind, index, *blocks[2 * i : 2 * i + 2]
            )
            key, weight_and_index = (
                (weight.dtype, index.dtype, kind, flat),
                [weight.data_ptr(), index.data_ptr()],
            )
        if count:
            aligned = count % 8 == 0 and all(address % 16 == 0 for address in addresses)
            rows = groups.setdefault((state[0].dtype, *key, aligned), [])
            first = (
                rows[-1][FIRST_CHUNK.value] + triton.cdiv(rows[-1][COUNT.value], CHUNK)
                if rows
                else 0
            )
            rows.append([*addresses, *weight_and_index, count, first, i, *fields])
    return groups


def _upload(rows, device):
    """The chunk and pointer tables of one group, on the device."""
    chunks = torch.tensor([triton.cdiv(row[COUNT.value], CHUNK) for row in rows])
    chunks = torch.repeat_interleave(torch.arange(len(rows), dtype=torch.int32), chunks)
    if device.type == "cuda":
        chunks = chunks.pin_memory()
    return chunks.to(device, non_blocking=True), _to_device(rows, torch.int64, device)


def masked_adamw_triton_(
    values, grads, exp_avgs, exp_avg_sqs, steps, weights, kinds, indices, blocks,
    *, lr, beta1, beta2, eps, weight_decay,
    maximize=False, grad_scale=None, found_inf=None, skip_nonfinite=False, lrs=None,
):  # fmt: skip
    """One AdamW step of every values[i].

    The first len(weights) also go to the selected entries of weights[i].

    lr to weight_decay hold one number a tensor, steps one float32 each, as do lrs, which count
    instead of lr. Nothing is read back to the host: grad_scale (gradients are divided by it) and
    found_inf (nonzero: nothing changes) stay on the device.
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
    groups = _group(states, steps, weights, kinds, indices, blocks)
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
        tables = [(*_upload(rows, device), *key) for key, rows in groups.items()]
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
        coefficients = torch.empty(
            len(values), COEFFICIENTS.value, dtype=torch.float64, device=device
        )
        hyper = _to_device(list(hyper.values()), torch.float64, device)
        if lrs is not None:
            hyper[0] = torch.stack([lr.view(()) for lr in lrs])
        step_ptrs = _to_device([step.data_ptr() for step in steps], torch.int64, device)
        _steps_kernel[(triton.cdiv(len(values), 128),)](
            step_ptrs, hyper, coefficients, found_inf, len(values), BLOCK=128, enable_fp_fusion=True
        )
        for chunks, table, dtype, weight_dtype, index_dtype, kind, flat, aligned in tables:
            _masked_adamw_kernel[chunks.shape](
                chunks, table, coefficients, grad_scale, found_inf,
                VALUE=TRITON_DTYPES[dtype], WEIGHT_DTYPE=TRITON_DTYPES[weight_dtype],
                INDEX_DTYPE=TRITON_DTYPES[index_dtype], KIND=kind, FLAT=flat,
                MAXIMIZE=maximize, ALIGNED=aligned, BLOCK=CHUNK, enable_fp_fusion=True,
            )  # fmt: skip
