"""activation: SiLU or GELU and its gradient; the mathematics is that of gated products too."""

import torch
import triton
import triton.language as tl

from .layout import check_tensors, copy_tile, on_device, round_to, tile


@triton.jit
def _divide(x, y):
    if x.dtype == tl.float64:
        return x / y
    else:  # plain / is approximate in float32
        return tl.div_rn(x, y)


@triton.jit
def _times_logistic(x, y):
    """x times the logistic function at y; exp(-|y|) neither overflows nor cancels."""
    e = tl.exp(-tl.abs(y))
    return _divide(tl.where(y < 0, x * e, x), 1 + e)


@triton.jit
def _logistic(x):
    """The logistic function and its derivative."""
    e = tl.exp(-tl.abs(x))
    larger = _divide(tl.full(x.shape, 1.0, x.dtype), 1 + e)
    smaller = e * larger
    return tl.where(x < 0, smaller, larger), smaller * larger


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """act(x) and its derivative; the one that is not used costs nothing."""
    if ACTIVATION == "silu":
        below, density = _logistic(x)
        value, slope = _times_logistic(x, x), below + x * density
    elif ACTIVATION == "gelu":
        below = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        value, slope = x * below, below + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))
    elif ACTIVATION == "gelu_tanh":  # 0.5 * (1 + tanh(u)) is the logistic function at 2 u
        value = _times_logistic(x, x * (1.5957691216057308 + 0.07135481627260025 * (x * x)))
        # The density is 0 there, and no square overflows.
        b = tl.where(x < -20, -20.0, tl.where(x > 20, 20.0, x)).to(x.dtype)
        below, density = _logistic(b * (1.5957691216057308 + 0.07135481627260025 * (b * b)))
        slope = below + b * density * (1.5957691216057308 + 0.21406444881780075 * (b * b))
    else:
        value, slope = tl.where(x < 0, 0.0, x).to(x.dtype), tl.where(x <= 0, 0.0, 1.0).to(x.dtype)
    return value, slope


@triton.jit
def load_wide(ptr, row, column, stride_m, stride_n, mask):
    """In the type of the arithmetic."""
    x = tl.load(ptr + row * stride_m + column * stride_n, mask=mask, other=0.0)
    return x.to(tl.float64 if x.dtype == tl.float64 else tl.float32)


@triton.jit
def _activation_kernel(
    input_ptr,  # [M, N]
    output_ptr,  # [M, N], contiguous
    M,
    N,
    stride_xm,
    stride_xn,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    _, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = offs_m[:, None], offs_n[None, :]
    mask = (row < M) & (column < N)
    value, _ = activate(load_wide(input_ptr, row, column, stride_xm, stride_xn, mask), ACTIVATION)
    tl.store(output_ptr + row * N + column, round_to(value, output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _activation_backward_kernel(
    grad_output_ptr,  # [M, N], as input
    input_ptr,
    grad_input_ptr,  # [M, N], contiguous
    M,
    N,
    stride_dm,
    stride_dn,
    stride_xm,
    stride_xn,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    _, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = offs_m[:, None], offs_n[None, :]
    mask = (row < M) & (column < N)
    grad = load_wide(grad_output_ptr, row, column, stride_dm, stride_dn, mask)
    _, slope = activate(load_wide(input_ptr, row, column, stride_xm, stride_xn, mask), ACTIVATION)
    tl.store(
        grad_input_ptr + row * N + column,
        round_to(grad * slope, grad_input_ptr.dtype.element_ty),
        mask=mask,
    )


def matrices(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors as matrices of one shape.

    One long row where all are contiguous, else [..., F] as [rows, F].
    """
    columns = tensors[0].shape[-1] if tensors[0].dim() else 1
    shape = (1, -1) if all(x.is_contiguous() for x in tensors) else (-1, columns)
    return [x.reshape(shape) for x in tensors]


def activation_triton(input: torch.Tensor, activation: str, output: torch.Tensor) -> None:
    """output = act(input), in fp32 (fp64 for fp64), rounded once.

    The caller has checked dtypes, shapes and the activation. output: contiguous.
    """
    check_tensors(input=input)
    if not output.numel():
        return
    (x,) = matrices(input)
    grid, options = copy_tile(1, *x.shape)
    with on_device(x):
        _activation_kernel[grid](x, output, *x.shape, *x.stride(), ACTIVATION=activation, **options)


def activation_backward_triton(
    grad_output: torch.Tensor, input: torch.Tensor, activation: str, grad_input: torch.Tensor
) -> None:
    """grad_input of activation_triton. grad_input: contiguous."""
    check_tensors(input=input, grad_output=grad_output)
    if not grad_input.numel():
        return
    grad, x = matrices(grad_output, input)
    grid, options = copy_tile(1, *x.shape)
    with on_device(x):
        _activation_backward_kernel[grid](
            grad,
            x,
            grad_input,
            *x.shape,
            *grad.stride(),
            *x.stride(),
            ACTIVATION=activation,
            **options,
        )
