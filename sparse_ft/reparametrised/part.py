"""Reparametrised: what all small deltas share, from the layer they stand on to the checkpoint."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._torch import remove_hooks_of
from ..annotations import AnyModule
from ..nn.linear import is_conv1d
from ..nn.reading import stored
from ..nn.selected import keep_precision

METADATA = "sparse_ft.reparametrised"  # in what torch keeps beside a state_dict's tensors
Merged = dict[str, torch.Tensor]  # {name of a parameter of the layer: what it is to hold}


class Reparametrised(nn.Module):
    """A few trained numbers that change what goes into one layer, or what comes out of it.

    It is a child of that layer, called by its `kind`, and works by hooks of it: the layer keeps its
    class, its forward and its names. Its parameters are fp32, or fp64 on an fp64 layer, whatever
    the layer is cast to. Until a step changes them, the layer gives what it gave.
    """

    kind: str
    label: str  # the name of the layer in the model

    def __init__(self) -> None:
        super().__init__()
        self.label = ""
        self.pending: Merged | None = None  # what a merge is about to write, and may be twice

    # What a subclass says.

    def prepare(self, layer: AnyModule) -> None:
        """Make the parameters for a layer, with `self.parameter`. Raises TypeError or ValueError
        for one that this cannot be put on.
        """
        raise NotImplementedError

    def before(self, layer: AnyModule, input: torch.Tensor) -> torch.Tensor:
        """What the layer is given instead of `input`."""
        return input

    def after(self, layer: AnyModule, input: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """What the layer gives instead of `output`. input: what it was given."""
        return output

    def why_not_merged(self, layer: AnyModule) -> str:
        """Why no weight and bias of this layer do the same; "" where some do."""
        raise NotImplementedError

    def merged(self, layer: AnyModule) -> Merged:
        """Weight and bias that do the same, in fp32 or wider."""
        raise NotImplementedError

    def told(self) -> dict[str, Any]:
        """What must be equal where its numbers are loaded: names and plain values."""
        raise NotImplementedError

    def how(self) -> str:
        """A few words for the table of what trains."""
        return f"reparametrised: {self.kind}"

    # What all do alike.

    def parameter(self, layer: AnyModule, *shape: int, fill: float = 0.0) -> nn.Parameter:
        """A new one on the layer's device, in fp32 or wider."""
        weight = stored(layer, "weight")
        dtype = torch.promote_types(torch.float32, weight.dtype)
        return nn.Parameter(torch.full(shape, fill, dtype=dtype, device=weight.device))

    def begin(self, layer: AnyModule) -> None:
        """Stand on a layer, for which `prepare` was called."""
        self.pending = None
        layer.add_module(self.kind, self)
        if type(self).before is not Reparametrised.before:
            layer.register_forward_pre_hook(self._before)
        if type(self).after is not Reparametrised.after:
            layer.register_forward_hook(self._after)

    def end(self, layer: AnyModule) -> None:
        """Undo `begin`, as far as it got; called again, it does the rest. The place in the layer,
        by which it is found, goes last.
        """
        remove_hooks_of(self, layer)
        self.label = ""
        if layer._modules.get(self.kind) is self:
            del layer._modules[self.kind]

    def _before(self, layer: AnyModule, inputs: tuple) -> tuple:
        return self.before(layer, self._first(inputs)), *inputs[1:]

    def _after(self, layer: AnyModule, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        return self.after(layer, self._first(inputs), output)

    def _first(self, inputs: tuple) -> torch.Tensor:
        if not inputs:
            raise TypeError(
                f"{self.label}: it has a delta ({self.kind}), which sees what is given by position;"
                " call it as layer(x), not by a keyword"
            )
        return inputs[0]

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> "Reparametrised":
        """torch's; its numbers are moved, and never made narrower than fp32."""
        own = [*self._parameters.values(), *(p.grad for p in self.parameters())]

        def keeping_precision(tensor: torch.Tensor) -> torch.Tensor:
            if any(tensor is each for each in own):
                return keep_precision(fn, tensor, None)
            return fn(tensor)

        super()._apply(keeping_precision, recurse)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None:
            metadata.setdefault(prefix[:-1], {})[METADATA] = self.told()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict, *rest: Any
    ) -> None:
        saved = local_metadata.get(METADATA)
        if saved is not None and saved != self.told():
            raise RuntimeError(
                f"state_dict: {prefix[:-1]!r} was trained as {saved}, and this one is"
                f" {self.told()}; put the same on the model before loading"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.told().items())


def is_linear(layer: nn.Module) -> bool:
    """nn.Linear, transformers' Conv1D, and what has selected entries of such."""
    return isinstance(layer, nn.Linear) or any(is_conv1d(kind) for kind in type(layer).__mro__)


def is_stored_by_inputs(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer is [in, out], as in transformers' Conv1D."""
    return not isinstance(layer, nn.Linear)


def out_by_in(layer: AnyModule) -> torch.Tensor:
    """The weight of a linear layer as [out, in], wide, not to be written."""
    weight = wide(stored(layer, "weight"))
    return weight.T if is_stored_by_inputs(layer) else weight


def as_stored(layer: AnyModule, weight: torch.Tensor) -> torch.Tensor:
    """What `out_by_in` gave, changed, the way the layer stores it."""
    return weight.T if is_stored_by_inputs(layer) else weight


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Detached, in fp32 or wider."""
    return tensor.detach().to(torch.promote_types(torch.float32, tensor.dtype))


def check_linear(layer: nn.Module, what: str) -> None:
    """Raise TypeError unless `what` can stand on this layer."""
    if not is_linear(layer):
        raise TypeError(f"{what} stands on a linear layer, got {type(layer).__name__}")
