"""dense_product: the two dense products that a selective step has left, at the machine's rate.

`input @ weight.T + bias` is a layer's forward, `grad_output @ weight` its gradient to the input:
the same product with the weight read the other way. Who serves it: `_dense_rule`.
"""

import torch
import torch.nn.functional as F

from . import _native, _onednn
from ._dense_rule import choice, server
from ._library import SERVED


def serves_dense(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> bool:
    """Whether `dense_product` of these is somebody else's than torch's. Shapes as there."""
    return server(input, weight, bias) != "torch"


def dense_product_ref(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return F.linear(input, weight, bias)


def dense_product_panels(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    output = input.new_empty(*input.shape[:-1], weight.size(0))
    _native.C.dense_product(input, weight, bias, output, torch.get_num_threads())
    return output


def dense_product(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`F.linear(input, weight, bias)` up to rounding, by whoever is fastest at it here.

    input: [..., K]. weight: [N, K], stored by rows or (a transposed view) by columns. bias: [N] or
    None. Any dtype and device that `F.linear` takes. Returns [..., N].

    The same bits for any number of threads where the panels serve. Not differentiable: for
    autograd functions that know their own backward. Raises what `F.linear` raises.
    """
    who = server(input, weight, bias)
    if who == "panels":
        return dense_product_panels(input, weight, bias)
    linear = _onednn.find_linear() if who == "onednn" else None
    if linear is not None:
        return _onednn.product(linear, input, weight, bias)
    return dense_product_ref(input, weight, bias)


def served() -> dict[str, tuple[str, str]]:
    """What `sft.backends()` says of this op: {device: (implementation, why)}."""
    elsewhere = "torch", "its own product is the fastest there"
    here = choice()
    return {"cpu": (here.library, here.why), "cuda": elsewhere, "other": elsewhere}


SERVED["dense_product"] = served
