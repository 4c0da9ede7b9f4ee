"""disabled: the base model for a while, for the reference of a preference loss or a comparison."""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from ..converted import record_of
from . import places
from .applying import Applied
from .exchange import Exchange, for_a_while, swap_all, tensor_of
from .making import ever_selected, kept_origin
from .part import Part


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """In here `model` is its base, bit for bit, and afterwards exactly what it was.

    Takes out the deltas that `sft.apply` put in, and, of a converted model, what has trained:
    `sft.convert(..., origin=True)` keeps what the base held. Gradients are off in here. No version
    counter moves, so a forward before it may have its backward after it.

    Buffers stay as they are. So do parameters that train whole ("all") where nobody kept their
    origin; a warning names them. Raises ValueError where there is nothing to take out, or no
    origin of selected entries.
    """
    is_converted = record_of(model) is not None
    applied = Applied.of(model)
    if not is_converted and not applied.records:
        raise ValueError(
            "model: nothing is in it that could be taken out; sft.apply(model, delta), or convert"
            " with origin=True"
        )
    rewritten = _Rewritten.of(model)
    with (
        torch.no_grad(),
        for_a_while(rewritten.show_base, rewritten.show_trained),
        applied.taken_out(model),
    ):
        yield model


def _exchange(model: nn.Module, each: places.Trained, origin: torch.Tensor) -> Exchange:
    """What brings the base's numbers to all entries of a tensor that have trained."""
    selection = each.selection
    if selection is not None:
        selection, known = ever_selected(each)
        if known is None:
            raise ValueError(
                f"model: nothing tells what {each.name!r} held where it trained before a"
                " reselection; sft.convert(model, plan, origin=True) keeps it"
            )
        origin = known
    part = Part(selection, origin, tuple(each.weight.shape), each.matrix_shape)
    return Exchange.of(each.name, part, tensor_of(model, each.name, part))


class _Rewritten:
    """The selected entries of a converted model hold the base's numbers for a while.

    In the weight and in `values`, which a compiled forward writes over the weight.
    """

    def __init__(
        self,
        model: nn.Module,
        exchanges: list[Exchange],
        values: list[tuple[torch.Tensor, torch.Tensor]],
    ):
        self.model = model
        self.exchanges = exchanges
        self.values = values  # (parameter, the base's numbers)
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    @classmethod
    def of(cls, model: nn.Module) -> "_Rewritten":
        exchanges, values, whole = [], [], []
        for each in places.trained(model) if record_of(model) is not None else ():
            origin = kept_origin(each)
            if each.layer is not None:
                # Its codes hold the base.
                values.append((each.parameter, each.layer.base_values(each.weight.dtype)))
                continue
            if origin is None and each.selection is None:
                whole.append(each.name)
                continue
            if origin is None:
                raise ValueError(
                    f"model: nothing tells what {each.name!r} held before it trained; sft.convert("
                    "model, plan, origin=True) keeps it"
                )
            if each.selection is not None:
                values.append((each.parameter, origin))
            exchanges.append(_exchange(model, each, origin))
        if whole:
            warnings.warn(
                f"disabled: {', '.join(whole[:3])} train whole, so nothing keeps what they held"
                " before; they stay as they are",
                stacklevel=5,
            )
        return cls(model, exchanges, values)

    def show_base(self) -> None:
        for parameter, origin in self.values:
            self.kept.append((parameter, parameter.data.clone()))
            parameter.data.copy_(origin)
        swap_all(self.model, self.exchanges, into=True, quietly=True)

    def show_trained(self) -> None:
        """Whatever of `show_base` was done is undone; called again, it does the rest."""
        for parameter, values in self.kept:
            parameter.data.copy_(values)
        swap_all(self.model, self.exchanges, into=False, quietly=True)
        self.kept.clear()
