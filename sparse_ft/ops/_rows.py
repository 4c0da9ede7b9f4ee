"""How the native core is handed tensors [..., columns]: as matrices whose rows are contiguous."""

from torch import Tensor

Shape = tuple[int, int]


def as_rows(*tensors: Tensor, flat: bool = True) -> tuple[Shape, list[Tensor]]:
    """((rows, columns), matrices): tensors [..., columns] of one shape, copied only where the
    strides of one demand it.

    flat: the work is elementwise, so that contiguous tensors may be one long row.
    """
    first = tensors[0]
    if flat and all(t.is_contiguous() for t in tensors):
        return (1, first.numel()), [t.view(1, -1) for t in tensors]
    columns = first.shape[-1]
    count = first.shape[:-1].numel()
    matrices = [t.reshape(count, columns) for t in tensors]
    return (count, columns), [_with_contiguous_rows(matrix) for matrix in matrices]


def _with_contiguous_rows(matrix: Tensor) -> Tensor:
    if matrix.size(1) < 2 or matrix.stride(1) == 1:
        return matrix
    return matrix.contiguous()


def rows(matrix: Tensor) -> tuple[int, int]:
    """Address and stride by which the native core knows the rows of a matrix."""
    return matrix.data_ptr(), matrix.stride(0)
