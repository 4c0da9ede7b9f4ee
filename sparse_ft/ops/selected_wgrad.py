"""selected_wgrad: the weight gradient at the selected entries only, `grad_outputᵀ · input` in the
compact layout.
"""

import torch

from . import _native
from ._library import define, implement, plain, wrote
from .layout import check_layout, check_values, explain_layout, values_shape

SCHEMA = (
    "selected_wgrad(Tensor grad_output, Tensor input, str kind, Tensor index, int block_h, int"
    " block_w, *, ScalarType? dtype=None) -> Tensor"
)
SCHEMA_ = (
    "selected_wgrad_(Tensor(a!) values_grad, Tensor grad_output, Tensor input, str kind, Tensor"
    " index, int block_h, int block_w) -> ()"
)
STRIP = (
    1 << 21
)  # elements of the dense gradient that strips hold at a time: half as many cost up to 6 % on two threads
# Share of entries from which strips of the dense product beat one dot product an entry. At T = in =
# out = 2048, fp32, AVX2, the dots take 0.25 of the dense time at 10 %, 0.83 at 40 % and 1.03 at 50
# % (two threads: 1.15), strips 0.98 to 1.02 at any share.
STRIPS_FROM = 0.4


def _accumulator(dtype):
    return torch.promote_types(torch.float32, dtype)


def selected_wgrad_ref(grad_output, input, kind, index, block_h, block_w, *, dtype=None):
    out = _fake(grad_output, input, kind, index, block_h, block_w, dtype=dtype)
    method = {"rows": _rows, "columns": _columns, "blocks": _blocks, "entries": _entries}[kind]
    wide = _accumulator(grad_output.dtype)
    return out.copy_(method(grad_output.to(wide), input.to(wide), index.long(), block_h, block_w))


def _rows(grad_output, input, index, *_):
    return grad_output[:, index].T @ input


def _columns(grad_output, input, index, *_):
    compact = input.size(1) == index.size(0)
    return grad_output.T @ (input if compact else input[:, index])


def _blocks(grad_output, input, index, block_h, block_w):
    def panels(operand, block, size):  # [T, n, size], zero-padded to whole blocks
        padded = torch.nn.functional.pad(operand, (0, -operand.size(1) % size))
        return (
            padded.unflatten(1, (-1, size))[:, block]
            if padded.numel()
            else operand.new_zeros(operand.size(0), len(block), size)
        )

    return torch.einsum(
        "tnh,tnw->nhw",
        panels(grad_output, index[:, 0], block_h),
        panels(input, index[:, 1], block_w),
    )


def _entries(grad_output, input, index, *_):
    values = index.new_zeros(index.size(0), dtype=input.dtype)
    for rows, some in _strips(index, grad_output.size(1), input.size(1)):
        where = index[some] - rows.start * input.size(1)
        values[some] = (grad_output[:, rows].T @ input).reshape(-1)[where]
    return values


def _strips(index, rows, columns):
    """The dense gradient in strips of rows, each dropped once its entries are taken: sorted
    positions make a strip a slice.

    Yields (rows, slice of the values).
    """
    if not index.numel():
        return
    height = max(1, min(STRIP // columns, -(-rows // 2)))
    # The last position in front of each strip, in the dtype of the index: searchsorted would
    # convert all of that instead.
    before = torch.arange(0, rows + height, height, device=index.device) * columns - 1
    before = before.clamp_(max=torch.iinfo(index.dtype).max).to(index.dtype)
    edges = torch.searchsorted(index, before, right=True).unfold(0, 2, 1).tolist()
    if edges[0][0] != 0 or edges[-1][1] != index.size(0):
        raise IndexError(
            f"index: it names entries that a matrix of shape {(rows, columns)} does not have; was"
            " it edited after the selection was made? Make a new selection instead"
        )
    for start, (lo, hi) in zip(range(0, rows, height), edges):
        if lo < hi:
            yield slice(start, min(start + height, rows)), slice(lo, hi)


def selected_wgrad_ref_(values_grad, grad_output, input, kind, index, block_h, block_w):
    _fake_(values_grad, grad_output, input, kind, index, block_h, block_w)
    wide = _accumulator(grad_output.dtype)
    values_grad += selected_wgrad_ref(grad_output, input, kind, index, block_h, block_w, dtype=wide)


def _check(grad_output, input, kind, index, block_h, block_w):
    for name, operand in (("grad_output", grad_output), ("input", input)):
        if operand.dim() != 2 or not operand.is_floating_point():
            raise ValueError(
                f"{name}: expected floating point [tokens, features], got {operand.dtype}"
                f" {tuple(operand.shape)}"
            )
    if grad_output.size(0) != input.size(0):
        raise ValueError(
            f"input: expected {grad_output.size(0)} tokens as in grad_output, got {input.size(0)}"
        )
    if grad_output.dtype != input.dtype:
        raise TypeError(f"input: expected {grad_output.dtype} as in grad_output, got {input.dtype}")
    check_layout(kind, index, block_h, block_w)


def _fake(grad_output, input, kind, index, block_h, block_w, *, dtype=None):
    _check(grad_output, input, kind, index, block_h, block_w)
    shape = values_shape(kind, index, block_h, block_w, (grad_output.size(1), input.size(1)))
    return grad_output.new_empty(shape, dtype=dtype or _accumulator(grad_output.dtype))


def _fake_(values_grad, grad_output, input, kind, index, block_h, block_w):
    _check(grad_output, input, kind, index, block_h, block_w)
    shape = (grad_output.size(1), input.size(1))
    check_values(values_grad, kind, index, block_h, block_w, shape, "values_grad")


def _native_wgrad(values, grad_output, input, kind, index, block_h, block_w, accumulate):
    if kind == "entries" and index.numel() > STRIPS_FROM * grad_output.size(1) * input.size(1):
        return _native_strips(values, grad_output, input, index, accumulate)
    where = (kind, index, block_h, block_w)
    threads = torch.get_num_threads()
    _native.C.selected_wgrad(grad_output, input, where, values, accumulate, threads)


def _native_strips(values, grad_output, input, index, accumulate):
    """Strips of the dense product, each dropped once its entries are gathered: the same bits for
    any number of threads.
    """
    columns, none = input.size(1), index[:0]
    for rows, some in _strips(index, grad_output.size(1), columns):
        strip = input.new_empty(rows.stop - rows.start, columns, dtype=_accumulator(input.dtype))
        _native_wgrad(strip, grad_output[:, rows], input, "all", none, 1, 1, accumulate=False)
        taken = torch.empty_like(values[some]) if accumulate else values[some]
        where = ("entries", index[some], 1, 1)
        first = rows.start * columns  # the index counts from the first row of the matrix
        _native.C.gather_selected(strip, where, taken, first, torch.get_num_threads())
        if accumulate:
            values[some] += taken


def _row_major(operand):
    return operand if operand.stride(1) == 1 or operand.size(1) == 1 else operand.contiguous()


def selected_wgrad_cpu(grad_output, input, kind, index, block_h, block_w, *, dtype=None):
    values = _fake(grad_output, input, kind, index, block_h, block_w, dtype=dtype)
    if grad_output.dtype not in _native.DTYPES or not _native.served(values):
        return selected_wgrad_ref(grad_output, input, kind, index, block_h, block_w, dtype=dtype)
    operands = _row_major(grad_output), _row_major(input)
    _native_wgrad(values, *operands, kind, index.contiguous(), block_h, block_w, accumulate=False)
    return values


def selected_wgrad_cpu_(values_grad, grad_output, input, kind, index, block_h, block_w):
    _fake_(values_grad, grad_output, input, kind, index, block_h, block_w)
    if grad_output.dtype not in _native.DTYPES or not _native.served(values_grad):
        return selected_wgrad_ref_(values_grad, grad_output, input, kind, index, block_h, block_w)
    operands = _row_major(grad_output), _row_major(input)
    _native_wgrad(
        values_grad, *operands, kind, index.contiguous(), block_h, block_w, accumulate=True
    )
    wrote(values_grad)


def selected_wgrad_triton(grad_output, input, kind, index, block_h, block_w, *, dtype=None):
    from sparse_ft.kernels import selected_wgrad as kernels

    dtype = dtype or _accumulator(grad_output.dtype)
    return kernels.selected_wgrad_triton(
        grad_output, input, kind, index, block_h, block_w, dtype=dtype
    )


def selected_wgrad_triton_(values_grad, grad_output, input, kind, index, block_h, block_w):
    from sparse_ft.kernels import selected_wgrad as kernels

    kernels.selected_wgrad_triton_(values_grad, grad_output, input, kind, index, block_h, block_w)
    wrote(values_grad)


define(SCHEMA, fake=_fake)
define(SCHEMA_, fake=_fake_)
_on_cpu = implement(
    "selected_wgrad",
    reference=selected_wgrad_ref,
    cpu=selected_wgrad_cpu,
    triton=selected_wgrad_triton,
)
implement(
    "selected_wgrad_",
    reference=selected_wgrad_ref_,
    cpu=selected_wgrad_cpu_,
    triton=selected_wgrad_triton_,
)


def selected_wgrad(grad_output, input, kind, index=None, block_h=1, block_w=1, *, dtype=None):
    """`gather_selected(grad_output.T @ input, …)` without the dense product.

    grad_output: [T, rows]. input: [T, columns]; for kind "columns" it may hold only the selected
    columns, [T, C]. Both of one floating dtype. Accumulates in fp32 (fp64 for fp64). dtype: of the
    result, default that of the accumulator. Returns values-shaped gradients; the padding of blocks
    is zero. Raises ValueError or TypeError that names the argument.
    """
    if type(kind) is not str or index is None:
        explain_layout(kind, index)
    ready = not torch.is_grad_enabled() and plain(
        (grad_output, input, index)
    )  # in a backward, mostly
    call = _on_cpu if ready else torch.ops.sparse_ft.selected_wgrad
    return call(grad_output, input, kind, index, block_h, block_w, dtype=dtype)


def selected_wgrad_(values_grad, grad_output, input, kind, index=None, block_h=1, block_w=1):
    """`values_grad += selected_wgrad(…)` in place, without the intermediate. Shapes and errors as
    in `selected_wgrad`.
    """
    if type(kind) is not str or index is None:
        explain_layout(kind, index)
    torch.ops.sparse_ft.selected_wgrad_(
        values_grad, grad_output, input, kind, index, block_h, block_w
    )
