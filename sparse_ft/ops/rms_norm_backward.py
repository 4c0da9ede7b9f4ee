"""rms_norm_backward: the gradient of what `rms_norm` normalised."""

from torch import Tensor

from ._common import check_floating, check_shape
from ._registry import Compiled, op
from .rms_norm import check, scaled, wide_dtype


def _shapes(grad_output: Tensor, input: Tensor, rstd: Tensor, weight: Tensor | None) -> Tensor:
    check(input, weight)
    if grad_output.shape != input.shape:
        raise ValueError(
            f"grad_output: expected the shape of input, {tuple(input.shape)}, got"
            f" {tuple(grad_output.shape)}"
        )
    check_floating("grad_output", grad_output)
    check_shape("rstd", rstd, input.shape[:-1])
    if rstd.dtype != wide_dtype(input, weight):
        raise TypeError(f"rstd: expected {wide_dtype(input, weight)}, got {rstd.dtype}")
    return input.new_empty(input.shape)


@op(
    "rms_norm_backward(Tensor grad_output, Tensor input, Tensor rstd, Tensor? weight, float offset)"
    " -> Tensor grad_input",
    shapes=_shapes,
    cpu=Compiled(rows=("grad_output", "input")),
    triton="rms_norm.rms_norm_backward_triton",
)
def rms_norm_backward(
    grad_output: Tensor,
    input: Tensor,
    rstd: Tensor,
    weight: Tensor | None = None,
    offset: float = 0.0,
) -> Tensor:
    """grad_input of `rms_norm`, in the dtype of input: with g = `grad_output * (offset + weight)`
    and n = `input * rstd`, `rstd * (g - n * mean(g * n))`.

    grad_output: [..., F]. rstd: [...], as `rms_norm` gave it. Raises ValueError or TypeError that
    names the argument.
    """
    grad = scaled(grad_output.to(rstd.dtype), weight, offset)
    normed = input.to(rstd.dtype) * rstd[..., None]
    grad_input = rstd[..., None] * (grad - normed * (grad * normed).mean(-1, keepdim=True))
    return grad_input.to(input.dtype).contiguous()
