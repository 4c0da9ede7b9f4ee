"""apply and remove: a delta goes into a base model and comes out again, bit for bit."""

import contextlib
import dataclasses
import math
from numbers import Real

import torch
from torch import nn

from ..converted import record_of
from ..messages import check_module
from ..nn import Selected
from ..nn.sharded import BEFORE, refuse_sharded
from .base import Known, base_values, differences, refuse
from .delta import Delta
from .exchange import Exchange, for_a_while, placed, swap_all
from .over_codes import InLayer, exchanges_of
from .overlap import overlapping
from .part import Part

_APPLIED = "_sparse_ft_applied"  # on the model: its `Applied`


@dataclasses.dataclass
class InModel:
    """A delta that is in a model, and what was there before."""

    delta: Delta
    exchanges: list[Exchange]


@dataclasses.dataclass
class Applied:
    """The deltas that are in a model, in order, and what is known of its base."""

    records: list[InModel] = dataclasses.field(default_factory=list)
    known: Known = dataclasses.field(default_factory=Known)

    @classmethod
    def of(cls, model: nn.Module) -> "Applied":
        """That of `model`, made where there is none yet."""
        return model.__dict__.setdefault(_APPLIED, cls())

    def taken_out(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """In here the model is its base; no version counter tells of it."""
        exchanges = [each for record in self.records[::-1] for each in record.exchanges[::-1]]
        return for_a_while(
            lambda: swap_all(model, exchanges, into=False, quietly=True),
            lambda: swap_all(model, exchanges[::-1], into=True, quietly=True),
        )

    def forget_interrupted(self) -> None:
        """Drop the records of deltas that are not in, for they were interrupted on their way."""
        self.records = [
            record for record in self.records if any(each.held.is_in for each in record.exchanges)
        ]

    def swap(self, model: nn.Module, exchanges: list[Exchange], into: bool) -> None:
        """Swap, and go on knowing the base."""
        pairs = [(each.name, placed(model, each.name, each.part)) for each in exchanges]
        valid = set(self.known.valid(pairs))
        swap_all(model, exchanges, into)
        for name, tensor in pairs:
            if name in valid:
                self.known.restamp(name, tensor)


def apply(
    model: nn.Module, delta: Delta, *, alpha: float = 1.0, force: bool = False, undo: bool = True
) -> nn.Module:
    """Put `delta` into `model`, in place: the fine-tuned model, bit for bit. Returns the model.

    model: the base, not converted. Deltas that change other entries can be in it at once, and one
    that was trained on top of others goes in on top of them.
    alpha: 0 for the base, 1 for the fine-tuned model, in between or beyond a mix of both: base +
    alpha * (new - base), in fp32 and rounded once; the base's values come from the delta where it
    has them (`origin`), else from the model. force: do not look whether the model is the base that
    the delta was made for. undo: keep what was there (as many bytes as the delta) for `sft.remove`.

    Raises ValueError for a converted model, an alpha that is no finite number, another base and a
    delta that is in it already, KeyError for a tensor that it does not have; the model is as it was
    then, as after any exception.
    """
    if not isinstance(delta, Delta):
        raise TypeError(f"delta: expected a Delta (see sft.load_delta), got {type(delta).__name__}")
    if not isinstance(alpha, Real) or not math.isfinite(alpha):
        raise ValueError(f"alpha: expected a finite number, got {alpha!r}")
    _refuse_converted(model)
    refuse_sharded(model, BEFORE)
    applied = Applied.of(model)
    applied.forget_interrupted()
    if any(record.delta is delta for record in applied.records):
        raise ValueError("delta: it is in this model already; sft.remove(model, delta) first")
    exchanges = exchanges_of(model, list(delta.items()))
    if not force:
        _check_base(model, delta, applied)
    if alpha != 1.0:
        parts = [(name, _mixed(model, name, part, alpha)) for name, part in delta.items()]
        exchanges = exchanges_of(model, parts)
    if undo:
        applied.records.append(InModel(delta, exchanges))  # first: whoever is in can come out
        applied.swap(model, exchanges, into=True)
    else:
        swap_all(model, exchanges, into=True)
    return model


def _check_base(model: nn.Module, delta: Delta, applied: Applied) -> None:
    """Raise ValueError unless `delta` was made for the base of `model`.

    Or for `model` as it is: trained on top of the deltas that are in it.
    """
    with applied.taken_out(model):
        if applied.known.fits(model, delta):
            return
        wrong = differences(model, delta, applied.known)
        if not wrong:
            applied.known.remember(model, delta)
    if wrong and not (applied.records and not differences(model, delta, Known())):
        refuse(delta, wrong)


def remove(model: nn.Module, delta: Delta | None = None) -> nn.Module:
    """Take `delta` (default: the last one) out of `model`, in place; returns the model.

    What was there before it comes back bit for bit, also if entries were changed since.

    Raises ValueError where it is not in the model, or where a later one changed some of its
    entries, which must come out first.
    """
    _refuse_converted(model)
    Applied.of(model).forget_interrupted()
    records = Applied.of(model).records
    at = next(
        (i for i in reversed(range(len(records))) if delta is None or records[i].delta is delta),
        None,
    )
    if at is None:
        what = "no delta is in this model" if delta is None else "it is not in this model"
        raise ValueError(f"delta: {what}; sft.apply(model, delta) puts one in")
    for later in records[at + 1 :]:
        name = overlapping(records[at].delta, later.delta)
        if name is not None:
            raise ValueError(
                f"delta: a delta that came later has changed {name!r} too; remove that one first"
            )
    Applied.of(model).swap(model, records[at].exchanges[::-1], into=False)
    del records[at]
    return model


def _refuse_converted(model: nn.Module) -> None:
    check_module("model", model)
    selective = {id(each) for each in model.modules() if isinstance(each, Selected)}
    records = Applied.of(model).records
    ours = {
        id(each.layer) for one in records for each in one.exchanges if isinstance(each, InLayer)
    }
    if record_of(model) is not None or selective - ours:
        raise ValueError(
            "model: it is converted, and its `values` would overwrite a delta at the next forward;"
            " sft.revert(model) first. To train on from a delta: apply it, then sft.convert(model,"
            " delta.plan)"
        )


def _mixed(model: nn.Module, name: str, part: Part, alpha: float) -> Part:
    """`part` with values between the base's and its own."""
    if not part.values.is_floating_point():
        return part  # counters: there is no half way
    origin = base_values(model, name, part) if part.origin is None else part.origin
    return part.with_values(mixed(origin.to(part.values), part.values, alpha))


def mixed(origin: torch.Tensor, values: torch.Tensor, alpha: float) -> torch.Tensor:
    """origin + alpha * (values - origin), in fp32 or wider, rounded once; exact at 0 and 1."""
    if alpha in (0, 1):  # infinities, and the sign of -0.0, too
        return (values if alpha else origin).clone()
    wide = torch.promote_types(values.dtype, torch.float32)
    return torch.lerp(origin.to(wide), values.to(wide), alpha).to(values.dtype)
