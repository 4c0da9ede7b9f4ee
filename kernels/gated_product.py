"""gated_product: act(gate) * up over rows that may be halves of a wider projection, and its gradients."""

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
def _activation(x, ACTIVATION: tl.constexpr):
    """act(x) and its derivative; the one that is not used costs nothing."""
    if ACTIVATION == "silu":
        below, density = _logistic(x)
        value, slope = _times_logistic(x, x), below + x * density
    elif ACTIVATION == "gelu":
        below = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        value, slope = x * below, below + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))
    elif ACTIVATION == "gelu_tanh":  # 0.5 * (1 + tanh(u)) is the logistic function at 2 u
        value = _times_logistic(x, x * (1.5957691216057308 + 0.07135481627260025 * (x * x)))
        b = tl.where(x < -20, -20.0, tl.where(x > 20, 20.0, x)).to(x.dtype)  # the density is 0 there, and no square overflows
        below, density = _logistic(b * (1.5957691216057308 + 0.07135481627260025 * (b * b)))
        slope = below + b * density * (1.5957691216057308 + 0.21406444881780075 * (b * b))
    else:
        value, slope = tl.where(x < 0, 0.0, x).to(x.dtype), tl.where(x <= 0, 0.0, 1.0).to(x.dtype)
    return value, slope


@triton.jit
def _load(ptr, row, column, stride_m, stride_n, mask):
    """In the type of the arithmetic."""
    x = tl.load(ptr + row * stride_m + column * stride_n, mask=mask, other=0.0)
    return x.to(tl.float64 if x.dtype == tl.float64 else tl.float32)


@triton.jit
def _gated_product_kernel(
    gate_ptr,  # [M, N], as up
    up_ptr,
    output_ptr,  # [M, N], contiguous
    M,
    N,
    stride_gm,
    stride_gn,
    stride_um,
    stride_un,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    _, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = offs_m[:, None], offs_n[None, :]
    mask = (row < M) & (column < N)
    gate = _load(gate_ptr, row, column, stride_gm, stride_gn, mask)
    up = _load(up_ptr, row, column, stride_um, stride_un, mask)
    value, _ = _activation(gate, ACTIVATION)
    tl.store(output_ptr + row * N + column, round_to(value * up, output_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gated_product_backward_kernel(
    grad_output_ptr,  # [M, N], as gate and up
    gate_ptr,
    up_ptr,
    grad_gate_ptr,  # [M, N], contiguous, as grad_up
    grad_up_ptr,
    M,
    N,
    stride_dm,
    stride_dn,
    stride_gm,
    stride_gn,
    stride_um,
    stride_un,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    _, offs_m, offs_n = tile(M, N, BLOCK_M, BLOCK_N)
    row, column = offs_m[:, None], offs_n[None, :]
    mask = (row < M) & (column < N)
    grad = _load(grad_output_ptr, row, column, stride_dm, stride_dn, mask)
    gate = _load(gate_ptr, row, column, stride_gm, stride_gn, mask)
    up = _load(up_ptr, row, column, stride_um, stride_un, mask)
    value, slope = _activation(gate, ACTIVATION)
    offs = row * N + column
    tl.store(grad_gate_ptr + offs, round_to(grad * up * slope, grad_gate_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_up_ptr + offs, round_to(grad * value, grad_up_ptr.dtype.element_ty), mask=mask)


def _matrices(*tensors):
    """The tensors as matrices of one shape: one long row where all are contiguous, else [..., F] as [rows, F]."""
    columns = tensors[0].shape[-1] if tensors[0].dim() else 1
    shape = (1, -1) if all(x.is_contiguous() for x in tensors) else (-1, columns)
    return [x.reshape(shape) for x in tensors]


def gated_product_triton(gate, up, activation):
    """act(gate) * up, in fp32 (fp64 for fp64), rounded once. The caller has checked shapes, dtypes and the activation."""
    check_tensors(gate=gate, up=up)
    output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if output.numel():
        gate, up = _matrices(gate, up)
        grid, options = copy_tile(1, *gate.shape)
        with on_device(gate):
            _gated_product_kernel[grid](
                gate, up, output, *gate.shape, *gate.stride(), *up.stride(), ACTIVATION=activation, **options
            )  # fmt: skip
    return output


def gated_product_backward_triton(grad_output, gate, up, activation):
    """(grad_gate, grad_up) of gated_product_triton."""
    check_tensors(gate=gate, up=up, grad_output=grad_output)
    grads = [torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2)]
    if gate.numel():
        operands = _matrices(grad_output, gate, up)
        grid, options = copy_tile(1, *operands[0].shape)
        strides = [stride for x in operands for stride in x.stride()]
        with on_device(gate):
            _gated_product_backward_kernel[grid](
                *operands, *grads, *operands[0].shape, *strides, ACTIVATION=activation, **options
            )  # fmt: skip
    return tuple(grads)
