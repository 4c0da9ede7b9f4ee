"""What every kernel here shares.

Where the entries of a layout sit in their matrix, and the launchers' checks.

A layout is (kind, index, block_h, block_w). Its values are walked as [num, M, N], contiguous:
rows (1, R, columns); columns (1, rows, C); blocks (n, block_h, block_w); entries (1, 1, nnz).
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

TRITON_DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}
# Names of arguments that are no floating-point numbers.
INTEGERS = ("index", "bits", "positive", "numbers")


class Structure(NamedTuple):
    """How the values of a kind of layout are walked."""

    index: str  # its shape
    values: Callable[[int, int, int, int, int], tuple[int, ...]]  # n, block_h, block_w, rows, cols
    # Of whole rows or columns, whose weight gradient is a product of these: "rows" or "columns".
    lines: str | None = None
    # (index, block_h, block_w) -> the numbers of these lines
    numbers: Callable[[torch.Tensor, int, int], torch.Tensor] = lambda index, *_: index


STRUCTURES = {
    "rows": Structure("[R]", lambda n, block_h, block_w, rows, columns: (n, columns), "rows"),
    "columns": Structure("[C]", lambda n, block_h, block_w, rows, columns: (rows, n), "columns"),
    "blocks": Structure("[n, 2]", lambda n, block_h, block_w, rows, columns: (n, block_h, block_w)),
    "entries": Structure("[nnz]", lambda n, block_h, block_w, rows, columns: (n,)),
}


@triton.jit
def tile(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """This program's part of values [num, M, N].

    b (scalar), offs_m [BLOCK_M] and offs_n [BLOCK_N], int64.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    pid_m = pid // tiles_n % tiles_m
    b = (pid // tiles_n // tiles_m).to(tl.int64)
    offs_m = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = pid_n.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return b, offs_m, offs_n


@triton.jit
def locate(index_ptr, b, offs_m, offs_n, M, N, block_h, block_w, KIND: tl.constexpr):
    """Row and column, int64, of values[b, m, n].

    For entries 0 and the flat position; for "all" m and n.
    """
    row = offs_m.to(tl.int64)
    column = offs_n.to(tl.int64)
    if KIND == "rows":
        row = tl.load(index_ptr + offs_m, mask=offs_m < M, other=0).to(tl.int64)
    if KIND == "columns" or KIND == "entries":
        column = tl.load(index_ptr + offs_n, mask=offs_n < N, other=0).to(tl.int64)
    if KIND == "blocks":
        b = b.to(tl.int64)
        row += tl.load(index_ptr + 2 * b).to(tl.int64) * block_h
        column += tl.load(index_ptr + 2 * b + 1).to(tl.int64) * block_w
    return row, column


@triton.jit
def address(
    matrix_ptr, row, column, columns, stride_xm, stride_xn, KIND: tl.constexpr, FLAT: tl.constexpr
):
    """Pointers to (row, column), which broadcast.

    Flat positions are taken apart only where strides ask for it.
    """
    if KIND == "entries" and not FLAT:
        row = column // columns
        column = column - row * columns
    return matrix_ptr + row * stride_xm + column * stride_xn


# Decided by the environment when triton is imported: interpreted, `locate` is a plain Python
# object.
INTERPRETED = tl.constexpr(not isinstance(locate, triton.JITFunction))


@triton.jit
def round_to(x, DTYPE: tl.constexpr):
    """x in DTYPE, to nearest even; float64 goes to 16 bits by way of float32, as torch's own cast
    does.
    """
    if x.dtype == tl.float64 and DTYPE != tl.float64:
        x = x.to(tl.float32)
    # The interpreter's own cast truncates.
    if INTERPRETED and DTYPE == tl.bfloat16 and x.dtype != tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


def check_layout(
    kind: str, index: torch.Tensor, block_h: int, block_w: int, rows: int, columns: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Raises with the name and value of what is wrong.

    Returns (num, M, N) and the shape of the values.
    """
    if kind not in STRUCTURES:
        raise ValueError(f"kind must be one of {', '.join(STRUCTURES)}, got {kind!r}")
    if index.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"index must be int32 or int64, got {index.dtype}")
    if index.dim() != (2 if kind == "blocks" else 1) or (kind == "blocks" and index.size(1) != 2):
        raise ValueError(
            f"index must be {STRUCTURES[kind].index} for kind {kind!r}, got {list(index.shape)}"
        )
    if kind == "blocks" and (block_h < 1 or block_w < 1):
        raise ValueError(f"block_h and block_w must be positive, got {block_h} and {block_w}")
    n = index.size(0)
    shape = STRUCTURES[kind].values(n, block_h, block_w, rows, columns)
    return (1,) * (3 - len(shape)) + shape, shape


def check_tensors(**tensors: torch.Tensor) -> None:
    """Floating dtype, one device, and a device that Triton runs on.

    The message names the argument.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if name not in INTEGERS and tensor.dtype not in (
            torch.float32,
            torch.float64,
            torch.bfloat16,
            torch.float16,
        ):
            raise TypeError(
                f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}"
            )
        if tensor.device != first.device:
            raise ValueError(f"{name} is on {tensor.device} but {first_name} is on {first.device}")
    if first.device.type != "cuda" and not INTERPRETED.value:
        raise ValueError(
            f"{first_name} is on {first.device}: Triton kernels need a CUDA device "
            "(or TRITON_INTERPRET=1 in the environment before triton is imported)"
        )


def check_values(name: str, values: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != tuple(shape):
        raise ValueError(f"{name} must be {list(shape)}, got {list(values.shape)}")


def matrix_strides(name: str, matrix: torch.Tensor) -> tuple[int, int, bool]:
    """(stride_xm, stride_xn, FLAT) of a matrix of any strides; FLAT: flat positions are offsets."""
    if matrix.dim() != 2:
        raise ValueError(f"{name} must be a [rows, columns] matrix, got {list(matrix.shape)}")
    flat = matrix.is_contiguous()
    return (matrix.size(1), 1, True) if flat else (*matrix.stride(), False)


_NOTHING = contextlib.nullcontext()


def on_device(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be the tensor's."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _NOTHING
    return torch.cuda.device(tensor.device)


def offsets_of(count: int) -> tl.dtype:
    """The dtype of offsets below `count`: 32 bits where that is enough."""
    return tl.int32 if count < 2**31 else tl.int64


def cdiv(a: int, b: int) -> int:
    """triton.cdiv without its 3 us: it looks for constants of a kernel among its arguments, as
    next_power_of_2 does.
    """
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def copy_tile(num: int, M: int, N: int) -> tuple[tuple[int], dict[str, Any]]:
    """Grid, tile and warps of a kernel that moves each value once.

    Up to 1024 values a program, 8 a thread, N first.
    """
    block_n = min(power_of_two(N), 1024)
    block_m = min(power_of_two(M), 1024 // block_n)
    grid = (num * cdiv(M, block_m) * cdiv(N, block_n),)
    warps = max(1, block_m * block_n // 256)
    return grid, dict(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, enable_fp_fusion=True)
