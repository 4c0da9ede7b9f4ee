"""oneDNN's linear product, which torch's wheel carries: a private name, used while it is right."""

import functools
from collections.abc import Callable

import torch

from .._torch import onednn_linear

Linear = Callable[..., torch.Tensor]

# Of the inner dimension at a time. oneDNN adds one product after the other, and its error over
# 2,048 of them is 2.3 times that of torch's product (root mean square; 1.0 over 256).
INNER_AT_ONCE = 256


@functools.cache
def find_linear() -> Linear | None:
    """oneDNN's `linear(input, weight, bias, "none", [], "")` as inductor calls it; None without it.

    None, too, where a torch of another release computes something else under that name.
    """
    if onednn_linear is None or not torch.backends.mkldnn.is_available():
        return None
    return onednn_linear if is_right(onednn_linear) else None


def is_right(linear: Linear) -> bool:
    """Whether `linear` computes what its name says, with a weight stored either way."""
    input = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 5.0, 0.5]], device="cpu")
    weight = torch.tensor([[1.0, 0.0, 2.0], [3.0, -1.0, 4.0]], device="cpu")
    bias = torch.tensor([10.0, 20.0], device="cpu")
    # Small numbers: exact in any order.
    expected = torch.tensor([[17.0, 33.0], [7.0, 5.0]], device="cpu")
    try:
        by_rows = product(linear, input, weight, bias)
        by_columns = product(linear, input, weight.T.contiguous().T, bias)
    except Exception:  # whatever a changed op raises means the same: do without it
        return False
    return torch.equal(by_rows, expected) and torch.equal(by_columns, expected)


def product(
    linear: Linear, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """`F.linear(input, weight, bias)`. input: [..., K]. weight: [N, K]. bias: [N] or None."""
    flat = input.view(-1, input.size(-1))
    pairs = zip(flat.split(INNER_AT_ONCE, 1), weight.split(INNER_AT_ONCE, 1))
    first_input, first_weight = next(pairs)
    output = input.new_empty(*input.shape[:-1], weight.size(0))  # no view: results may be written
    total = output.view(-1, weight.size(0))
    total.copy_(linear(first_input, dense(first_weight), bias, "none", [], ""))
    for more_input, more_weight in pairs:
        total += linear(more_input, dense(more_weight), None, "none", [], "")
    return output


def dense(weight: torch.Tensor) -> torch.Tensor:
    """A weight whose rows, or columns, lie one after the other. With gaps between them oneDNN takes
    its reference: 440 ms where a copy and a product of 256 x 256 x 256 take 0.8.
    """
    return weight if weight.T.is_contiguous() else weight.contiguous()
