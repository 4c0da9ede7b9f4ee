"""How the native core is handed tensors: contiguous, or as matrices whose rows are contiguous."""

from torch import Tensor


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None else tensor.contiguous()


def as_rows(*tensors: Tensor) -> list[Tensor]:
    """Tensors [..., columns] of one shape as the native core takes them: contiguous ones as they
    are, else [rows, columns], copied only where the strides of one demand it.
    """
    if all(t.is_contiguous() for t in tensors):
        return list(tensors)
    return [_with_contiguous_rows(t.reshape(-1, t.shape[-1])) for t in tensors]


def _with_contiguous_rows(matrix: Tensor) -> Tensor:
    if matrix.size(1) < 2 or matrix.stride(1) == 1:
        return matrix
    return matrix.contiguous()
