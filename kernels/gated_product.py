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


def gated_product_triton(
    gate: torch.Tensor, up: torch.Tensor, activation: str, output: torch.Tensor
) -> None:
    """output = act(gate) * up, in fp32 (fp64 for fp64), rounded once.

    The caller has checked shapes, dtypes and the activation. output: contiguous.
    """
    check_tensors(gate=gate, up=up)
    if not output.numel():
        return
    gate, up = matrices(gate, up)
    grid, options = copy_tile(1, *gate.shape)
    with on_device(gate):
        _gated_product_kernel[grid](
            gate,
            up,
            output,
            *gate.shape,
            *gate.stride(),
            *up.stride(),
            ACTIVATION=activation,
            **options,
        )


def gated_product_backward_triton(
    grad_output: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    activation: str,
    grad_gate: torch.Tensor,
    grad_up: torch.Tensor,
) -> None:
    """grad_gate and grad_up of gated_product_triton, both contiguous."""
    check_tensors(gate=gate, up=up, grad_output=grad_output)
    if not grad_gate.numel():
        return
    grad_output, gate, up = matrices(grad_output, gate, up)
    grid, options = copy_tile(1, *gate.shape)
    with on_device(gate):
        _gated_product_backward_kernel[grid](
            grad_output,
            gate,
            up,
            grad_gate,
            grad_up,
            *gate.shape,
            *grad_output.stride(),
            *gate.stride(),
            *up.stride(),
            ACTIVATION=activation,
            **options,
        )
