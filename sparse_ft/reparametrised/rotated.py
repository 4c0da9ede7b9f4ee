"""Values in a rotated basis: a few coordinates of a weight's change train (SparseGrad, LoCA, QWHA).

The layer's weight stays as it is. Its change is `left @ S @ right.T`, where S holds `values` at the
selected places; neither it nor its gradient is ever made: the layer's input goes into the basis,
meets S, and comes back.
"""

from collections.abc import Callable
from typing import Any

import torch

from .. import ops
from ..annotations import AnyModule
from ..double_backward import first_order
from ..messages import described, did_you_mean
from ..selection import Rows, Selection
from .bases import BASES, Basis, Dense
from .part import Merged, Reparametrised, as_stored, check_linear, out_by_in, wide

SIDES = "left", "right"


class RotatedValues(Reparametrised):
    """`x @ (W + left @ S @ right.T).T + b`, S zero but for `values` at the selected places.

    selection: of the matrix S, of the basis's shape; None where `values` are to be all of it.
    basis: a `Basis`, or a name: "svd" (of the weight), "dct" (LoCA, Du et al., 2025), "hadamard",
    "hadamard_inputs" (QWHA, Jeon et al., 2025). values: zero at first. Kept for backward: the
    rotated input, of columns and blocks only the features they need. A step costs, beside the
    layer's own products, both rotations of every token twice, and the product with S. A basis of
    matrices (SVD) is kept with it and saved in the `state_dict`.
    """

    kind = "rotated"

    def __init__(
        self, selection: Selection | None, basis: str | Basis | Callable[..., Basis]
    ) -> None:
        super().__init__()
        if selection is not None and not isinstance(selection, Selection):
            raise TypeError(f"selection: expected a Selection or None, got {described(selection)}")
        if not isinstance(basis, (str, Basis)) and not callable(basis):
            raise TypeError(f"basis: expected {' or '.join(BASES)}, or a Basis, got {basis!r}")
        if isinstance(basis, str):
            if basis not in BASES:
                raise ValueError(f"basis: unknown {basis!r}{did_you_mean(basis, BASES)}")
            basis = BASES[basis]
        self.selection: Any = selection
        self._make: Any = basis
        self.basis: Any = None

    def prepare(self, layer: AnyModule) -> None:
        check_linear(layer, "RotatedValues: it")
        weight = out_by_in(layer)
        self.basis = self._make if isinstance(self._make, Basis) else self._make(weight)
        self._make = self.basis
        sizes = self.basis.left.inputs, self.basis.right.inputs
        if sizes != tuple(weight.shape):
            raise ValueError(f"basis: of {sizes}, the weight is {tuple(weight.shape)}")
        if self.selection is None:
            self.selection = Rows(range(self.basis.shape[0])).on(self.basis.shape)
        shape = self.selection.values_shape(self.basis.shape)
        self.values = self.parameter(layer, *shape)
        self._settle()

    def after(self, layer: AnyModule, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        part = self.selection.restrict(1, self.basis.shape[1])
        return output + _RotatedProduct.apply(input.to(output.dtype), self.values, self.basis, part)

    def why_not_merged(self, layer: AnyModule) -> str:
        return ""

    def merged(self, layer: AnyModule) -> Merged:
        weight = out_by_in(layer)
        coordinates = weight.new_zeros(self.basis.shape)
        self.selection.scatter_(coordinates, wide(self.values).to(weight.dtype))
        return {"weight": as_stored(layer, weight + self.basis.matrix(coordinates))}

    def told(self) -> dict[str, Any]:
        return {"kind": self.kind, "selection": self.selection.digest, **self.basis.told()}

    def _settle(self) -> None:
        device = self.values.device
        if device.type != "meta":
            self.selection = self.selection.to(device)
            self.basis = self.basis.moved(device)

    def _apply(self, *args: Any, **kwargs: Any) -> "RotatedValues":
        super()._apply(*args, **kwargs)
        self._settle()
        return self

    def _matrices(self) -> dict[str, Dense]:
        sides = {side: getattr(self.basis, side) for side in SIDES}
        return {side: each for side, each in sides.items() if isinstance(each, Dense)}

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for side, rotation in self._matrices().items():
            destination[f"{prefix}{side}"] = rotation.matrix

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        *rest: Any,
    ) -> None:
        """Loads the matrices of the basis, too: the singular vectors of a weight are not the same
        ones on every machine.
        """
        for side, rotation in self._matrices().items():
            saved = state_dict.pop(f"{prefix}{side}", None)
            if saved is None:
                missing_keys.append(f"{prefix}{side}")
                continue
            if saved.shape != rotation.matrix.shape:
                raise RuntimeError(
                    f"state_dict: {prefix + side!r} has shape {tuple(saved.shape)}, expected"
                    f" {tuple(rotation.matrix.shape)}"
                )
            setattr(self.basis, side, Dense(saved.to(rotation.matrix, copy=True)))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, *rest
        )


class _RotatedProduct(torch.autograd.Function):
    """`((x @ right) @ S.T) @ left.T`. part: the features of the rotated input that S needs, and the
    selection's layout on these (`Selection.restrict`).
    """

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, values: torch.Tensor, basis: Basis, part: Any
    ) -> torch.Tensor:
        features, layout = part
        flat = input.reshape(-1, input.size(-1))
        rotated = basis.right.features(flat, features)  # [T, features]
        held = _held(values, rotated, layout, (basis.shape[0], rotated.size(1)))
        ctx.save_for_backward(rotated if values.requires_grad else None, values)
        ctx.how = basis, part
        return basis.left.back(rotated @ held.T).view(*input.shape[:-1], -1)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        basis, (features, layout) = ctx.how
        rotated, values = ctx.saved_tensors
        flat = grad_output.reshape(-1, grad_output.size(-1))
        grad_rotated = basis.left.to(flat)  # [T, outputs]
        grad_input = grad_values = None
        if ctx.needs_input_grad[1]:
            grad_values = ops.selected_wgrad(grad_rotated, rotated.to(flat.dtype), layout)
        if ctx.needs_input_grad[0]:
            width = basis.shape[1] if features is None else features.size(0)
            held = _held(values, grad_rotated, layout, (basis.shape[0], width))
            to_features = grad_rotated @ held
            if features is not None:
                whole = flat.new_zeros(flat.size(0), basis.shape[1])
                to_features = whole.index_copy_(1, features, to_features)
            grad_input = basis.right.back(to_features)
            grad_input = grad_input.view(*grad_output.shape[:-1], -1)
        return grad_input, grad_values, None, None


def _held(
    values: torch.Tensor, like: torch.Tensor, layout: Any, shape: tuple[int, int]
) -> torch.Tensor:
    """S, of the features that it needs: zeros but for the values, in the dtype of `like`."""
    held = like.new_zeros(shape)
    ops.scatter_selected_(held, values.detach(), layout)
    return held
