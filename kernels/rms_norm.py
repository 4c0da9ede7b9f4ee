"""rms_norm: rows divided by their root mean square, and the gradient of that.

One program a row, which reads it twice.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .layout import check_tensors, on_device, round_to


@triton.jit
def _divide(x, y):
    """To nearest, as torch divides; a plain / is approximate in float32."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, tl.full((), y, tl.float32))


@triton.jit
def _rstd(mean, eps: tl.constexpr):
    """1 / sqrt(mean + eps), each step to nearest."""
    shifted = mean + tl.full((), eps, mean.dtype)
    if mean.dtype == tl.float64:
        return 1 / tl.sqrt(shifted)
    else:
        return tl.div_rn(tl.full((), 1.0, tl.float32), tl.sqrt_rn(shifted))


@triton.jit
def _factor(weight_ptr, offs, mask, offset, WIDE: tl.constexpr):
    """offset + weight; 1 without a weight."""
    if weight_ptr is None:
        return tl.full(offs.shape, 1.0, WIDE)
    else:
        return tl.load(weight_ptr + offs, mask=mask, other=0.0).to(WIDE) + tl.full((), offset, WIDE)


@triton.jit
def _rms_norm_kernel(
    input_ptr,  # [rows, N]
    weight_ptr,  # [N] or None
    output_ptr,  # [rows, N], contiguous
    rstd_ptr,  # [rows]
    N,
    stride_xm,
    stride_xn,
    eps: tl.constexpr,
    offset: tl.constexpr,
    BLOCK: tl.constexpr,
):
    WIDE: tl.constexpr = rstd_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    squares = tl.zeros([BLOCK], WIDE)
    for start in range(0, N, BLOCK):
        offs = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(input_ptr + row * stride_xm + offs * stride_xn, mask=offs < N, other=0.0).to(
            WIDE
        )
        squares += x * x
    rstd = _rstd(_divide(tl.sum(squares, axis=0), N), eps)
    tl.store(rstd_ptr + row, rstd)
    for start in range(0, N, BLOCK):
        offs = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(input_ptr + row * stride_xm + offs * stride_xn, mask=offs < N, other=0.0).to(
            WIDE
        )
        y = x * rstd * _factor(weight_ptr, offs, offs < N, offset, WIDE)
        tl.store(
            output_ptr + row * N + offs, round_to(y, output_ptr.dtype.element_ty), mask=offs < N
        )


@triton.jit
def _rms_norm_backward_kernel(
    grad_output_ptr,  # [rows, N]
    input_ptr,  # [rows, N]
    rstd_ptr,  # [rows]
    weight_ptr,  # [N] or None
    grad_input_ptr,  # [rows, N], contiguous
    N,
    stride_dm,
    stride_dn,
    stride_xm,
    stride_xn,
    offset: tl.constexpr,
    BLOCK: tl.constexpr,
):
    WIDE: tl.constexpr = rstd_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + row)
    products = tl.zeros([BLOCK], WIDE)
    for start in range(0, N, BLOCK):
        offs = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(input_ptr + row * stride_xm + offs * stride_xn, mask=offs < N, other=0.0).to(
            WIDE
        )
        g = tl.load(
            grad_output_ptr + row * stride_dm + offs * stride_dn, mask=offs < N, other=0.0
        ).to(WIDE)
        products += g * _factor(weight_ptr, offs, offs < N, offset, WIDE) * x
    mean = _divide(tl.sum(products, axis=0) * rstd, N)
    for start in range(0, N, BLOCK):
        offs = start + tl.arange(0, BLOCK).to(tl.int64)
        x = tl.load(input_ptr + row * stride_xm + offs * stride_xn, mask=offs < N, other=0.0).to(
            WIDE
        )
        g = tl.load(
            grad_output_ptr + row * stride_dm + offs * stride_dn, mask=offs < N, other=0.0
        ).to(WIDE)
        g *= _factor(weight_ptr, offs, offs < N, offset, WIDE)
        grad_input = rstd * (g - x * rstd * mean)
        tl.store(
            grad_input_ptr + row * N + offs,
            round_to(grad_input, grad_input_ptr.dtype.element_ty),
            mask=offs < N,
        )


def _options(columns: int) -> dict[str, Any]:
    block = min(triton.next_power_of_2(columns), 2048)  # 8 elements a thread, as copy_tile
    return dict(BLOCK=block, num_warps=max(1, block // 256), enable_fp_fusion=True)


def rms_norm_triton(
    input: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    offset: float,
    output: torch.Tensor,
    rstd: torch.Tensor,
) -> None:
    """Fills output [..., F], contiguous, and rstd [...], whose dtype is that of the arithmetic.

    The caller checks shapes.
    """
    weights = {} if weight is None else {"weight": weight.contiguous()}
    check_tensors(input=input, output=output, rstd=rstd, **weights)
    if input.numel() == 0:
        rstd.fill_(float("nan"))  # the mean of nothing
        return
    x = input.reshape(-1, input.shape[-1])
    with on_device(input):
        _rms_norm_kernel[(x.size(0),)](
            x,
            weights.get("weight"),
            output,
            rstd,
            x.size(1),
            *x.stride(),
            eps=eps,
            offset=offset,
            **_options(x.size(1)),
        )


def rms_norm_backward_triton(
    grad_output: torch.Tensor,
    input: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    offset: float,
    grad_input: torch.Tensor,
) -> None:
    """Fills grad_input [..., F], contiguous."""
    weights = {} if weight is None else {"weight": weight.contiguous()}
    check_tensors(input=input, grad_output=grad_output, rstd=rstd, grad_input=grad_input, **weights)
    if input.numel() == 0:
        return
    g, x = (t.reshape(-1, t.shape[-1]) for t in (grad_output, input))
    with on_device(input):
        _rms_norm_backward_kernel[(x.size(0),)](
            g, x, rstd.contiguous(), weights.get("weight"), grad_input,
            x.size(1), *g.stride(), *x.stride(), offset=offset, **_options(x.size(1)),
        )  # fmt: skip
