"""gated_product: act(gate) * up over rows that may be halves of a wider projection, and its
gradients.
"""

import torch
import triton
import triton.language as tl

from .activation import activate, load_wide, matrices
from .layout import check_tensors, copy_tile, on_device, round_to, tile


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
    gate = load_wide(gate_ptr, row, column, stride_gm, stride_gn, mask)
    up = load_wide(up_ptr, row, column, stride_um, stride_un, mask)
    value, _ = activate(gate, ACTIVATION)
    tl.store(
        output_ptr + row * N + column, round_to(value * up, output_ptr.dtype.element_ty), mask=mask
    )


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
    grad = load_wide(grad_output_ptr, row, column, stride_dm, stride_dn, mask)
    gate = load_wide(gate_ptr, row, column, stride_gm, stride_gn, mask)
    up = load_wide(up_ptr, row, column, stride_um, stride_un, mask)
    value, slope = activate(gate, ACTIVATION)
    offs = row * N + column
    tl.store(
        grad_gate_ptr + offs, round_to(grad * up * slope, grad_gate_ptr.dtype.element_ty), mask=mask
    )
    tl.store(grad_up_ptr + offs, round_to(grad * value, grad_up_ptr.dtype.element_ty), mask=mask)


def gated_product_triton(gate, up, activation):
    """act(gate) * up, in fp32 (fp64 for fp64), rounded once.

    The caller has checked shapes, dtypes and the activation.
    """
    check_tensors(gate=gate, up=up)
    output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if output.numel():
        gate, up = matrices(gate, up)
        grid, options = copy_tile(1, *gate.shape)
        with on_device(gate):
            _gated_product_kernel[grid](
                gate, up, output, *gate.shape, *gate.stride(), *up.stride(),
                ACTIVATION=activation, **options,
            )  # fmt: skip
    return output


def gated_product_backward_triton(grad_output, gate, up, activation):
    """(grad_gate, grad_up) of gated_product_triton."""
    check_tensors(gate=gate, up=up, grad_output=grad_output)
    grads = [torch.empty(gate.shape, dtype=gate.dtype, device=gate.device) for _ in range(2)]
    if gate.numel():
        operands = matrices(grad_output, gate, up)
        grid, options = copy_tile(1, *operands[0].shape)
        strides = [stride for x in operands for stride in x.stride()]
        with on_device(gate):
            _gated_product_backward_kernel[grid](
                *operands, *grads, *operands[0].shape, *strides, ACTIVATION=activation, **options
            )  # fmt: skip
    return tuple(grads)
