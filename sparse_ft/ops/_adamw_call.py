"""The arguments of masked_adamw_, which the dispatcher takes as lists, as one `AdamWTensor` a
tensor; what is wrong with them is named.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ._adamw_state import StateFormat, check_like
from ._adamw_tensor import AdamWTensor, Flags, Settings
from ._adamw_variation import check_variation
from ._common import check_count
from .layout import Layout, check_matrix

Tensors = Sequence[torch.Tensor]
SCHEMA = (
    "masked_adamw_(Tensor(a!)[] values, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[]"
    " exp_avg_sqs, Tensor(d!)[] steps, Tensor(e!)[] weights, str[] kinds, Tensor[] indices, int[]"
    " blocks, *, float[] lr, float[] beta1, float[] beta2, float[] eps, float[] weight_decay, bool"
    " maximize=False, Tensor? grad_scale=None, Tensor(f!)? found_inf=None, bool"
    " skip_nonfinite=False, Tensor[]? lrs=None, Tensor(g!)[]? corrections=None, int[]? seeds=None,"
    " Tensor(h!)[]? absmaxes=None, Tensor[]? generations=None, Tensor[]? births=None, Tensor[]?"
    " factors=None, Tensor[]? origins=None) -> ()"
)
# Argument of the op -> field of a tensor; both may be left out.
OPTIONAL = {
    "corrections": "correction",
    "generations": "generation",
    "births": "births",
    "factors": "factor",
    "origins": "origin",
}


@dataclasses.dataclass(slots=True)
class Call:
    """One call of the op."""

    tensors: list[AdamWTensor]
    flags: Flags

    def written(self) -> list[torch.Tensor]:
        """What the call changes, but for `found_inf`."""
        return [written for t in self.tensors for written in t.written()]

    def is_skipped(self) -> bool:
        """Whether nothing changes; sets `found_inf` where this is found here."""
        found_inf = self.flags.found_inf
        if found_inf is None:
            return False
        if found_inf.item():
            return True
        if not self.flags.skip_nonfinite or all(t.grad.isfinite().all() for t in self.tensors):
            return False
        found_inf.fill_(1)
        return True

    def with_plain_strides(self) -> "Call":
        """The same for who walks memory in order: gradients lie as their values, indices are
        contiguous.
        """
        return dataclasses.replace(self, tensors=[_with_plain_strides(t) for t in self.tensors])

    def check(self) -> "Call":
        """Raise ValueError or TypeError for what does not go together, tensor by tensor."""
        for t in self.tensors:
            _check_scalar("steps", t.step)
        for t in self.tensors:
            StateFormat.of(t).check(t)
            check_variation(t)
            check_like("grads", t.grad, t.value, t.value.dtype)
        for t in self.tensors:
            if t.weight is not None and t.layout is not None:
                check_matrix(t.weight)
                t.layout.check()
                t.layout.check_values(t.value, t.weight.shape)
        return self

    def check_device(self) -> None:
        """A kernel that follows an address into the memory of another device takes the process with
        it.
        """
        device = self.tensors[0].value.device
        for name, tensor in self._named():
            if tensor is not None and tensor.device != device:
                raise ValueError(
                    f"{name}: expected every tensor on {device} as the first of values, got one on"
                    f" {tensor.device}"
                )

    def _named(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        for t in self.tensors:
            yield "values", t.value
            yield "grads", t.grad
            yield "exp_avgs", t.exp_avg
            yield "exp_avg_sqs", t.exp_avg_sq
            yield "steps", t.step
            yield "lrs", t.settings.lr_at
            yield "corrections", t.correction
            yield "absmaxes", t.exp_avg_absmax
            yield "absmaxes", t.exp_avg_sq_absmax
            yield "generations", t.generation
            yield "births", t.births
            yield "factors", t.factor
            yield "origins", t.origin
            if t.weight is not None and t.layout is not None:
                yield "weights", t.weight
                yield "indices", t.layout.index
        yield "grad_scale", self.flags.grad_scale
        yield "found_inf", self.flags.found_inf


def call_of(
    values: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    weights: Tensors = (),
    kinds: Sequence[str] = (),
    indices: Tensors = (),
    blocks: Sequence[int] = (),
    *,
    lr: Sequence[float],
    beta1: Sequence[float],
    beta2: Sequence[float],
    eps: Sequence[float],
    weight_decay: Sequence[float],
    maximize: bool = False,
    grad_scale: torch.Tensor | None = None,
    found_inf: torch.Tensor | None = None,
    skip_nonfinite: bool = False,
    lrs: Tensors | None = None,
    corrections: Tensors | None = None,
    seeds: Sequence[int] | None = None,
    absmaxes: Tensors | None = None,
    generations: Tensors | None = None,
    births: Tensors | None = None,
    factors: Tensors | None = None,
    origins: Tensors | None = None,
) -> Call:
    """The call that these arguments of the op make. Only their numbers are checked here.

    The first len(weights) values have a layout and are written through; the rest are plain.
    """
    count = len(values)
    check_count("grads", grads, count, "values")
    check_count("exp_avgs", exp_avgs, count, "values")
    check_count("exp_avg_sqs", exp_avg_sqs, count, "values")
    check_count("steps", steps, count, "values")
    check_count("lr", lr, count, "values")
    check_count("beta1", beta1, count, "values")
    check_count("beta2", beta2, count, "values")
    check_count("eps", eps, count, "values")
    check_count("weight_decay", weight_decay, count, "values")
    _check_optional("lrs", lrs, count)
    _check_optional("corrections", corrections, count)
    _check_optional("seeds", seeds, count)
    _check_absmaxes(absmaxes, count)
    _check_optional("generations", generations, count)
    _check_optional("births", births, count)
    _check_optional("factors", factors, count)
    _check_optional("origins", origins, count)
    _check_layouts(weights, kinds, indices, blocks, count)
    if skip_nonfinite and found_inf is None:
        raise ValueError(
            "found_inf: skip_nonfinite needs a float32 tensor of one element to report to, got None"
        )
    _check_scalar("grad_scale", grad_scale)
    _check_scalar("found_inf", found_inf)
    for lr_at in lrs or ():
        _check_scalar("lrs", lr_at)
    tensors = []
    for i, value in enumerate(values):
        settings = Settings(lr[i], beta1[i], beta2[i], eps[i], weight_decay[i])
        if lrs is not None:
            settings.lr_at = lrs[i]
        t = AdamWTensor(value, grads[i], exp_avgs[i], exp_avg_sqs[i], steps[i], settings)
        if i < len(weights):
            t.weight = weights[i]
            t.layout = Layout(kinds[i], indices[i], blocks[2 * i], blocks[2 * i + 1])
        t.correction = _given(corrections, i)
        t.generation = _given(generations, i)
        t.births = _given(births, i)
        t.factor = _given(factors, i)
        t.origin = _given(origins, i)
        if seeds and seeds[i] != -1:
            t.seed = seeds[i]
        if absmaxes and absmaxes[2 * i].numel():
            t.exp_avg_absmax = absmaxes[2 * i]
            t.exp_avg_sq_absmax = absmaxes[2 * i + 1]
        tensors.append(t)
    return Call(tensors, Flags(maximize, grad_scale, found_inf, skip_nonfinite))


def arguments_of(call: Call) -> tuple[list[Any], dict[str, Any]]:
    """The positional and keyword arguments that `call_of` makes this call of; tensors with a weight
    come first.
    """
    tensors = call.tensors
    settings = [t.settings for t in tensors]
    linked = [t for t in tensors if t.weight is not None]
    layouts = [t.layout for t in linked if t.layout is not None]
    positional = [
        [t.value for t in tensors],
        [t.grad for t in tensors],
        [t.exp_avg for t in tensors],
        [t.exp_avg_sq for t in tensors],
        [t.step for t in tensors],
        [t.weight for t in linked],
        [layout.kind for layout in layouts],
        [layout.index for layout in layouts],
        [size for layout in layouts for size in (layout.block_h, layout.block_w)],
    ]
    keywords: dict[str, Any] = {
        "lr": [s.lr for s in settings],
        "beta1": [s.beta1 for s in settings],
        "beta2": [s.beta2 for s in settings],
        "eps": [s.eps for s in settings],
        "weight_decay": [s.weight_decay for s in settings],
        "maximize": call.flags.maximize,
        "grad_scale": call.flags.grad_scale,
        "found_inf": call.flags.found_inf,
        "skip_nonfinite": call.flags.skip_nonfinite,
    }
    if any(s.lr_at is not None for s in settings):
        keywords["lrs"] = [s.lr_at for s in settings]
    for name, field in OPTIONAL.items():
        given = [getattr(t, field) for t in tensors]
        if any(tensor is not None for tensor in given):
            keywords[name] = [_or_nothing(tensor, t) for tensor, t in zip(given, tensors)]
    if any(t.seed is not None for t in tensors):
        keywords["seeds"] = [-1 if t.seed is None else t.seed for t in tensors]
    if any(t.exp_avg_absmax is not None for t in tensors):
        keywords["absmaxes"] = [
            _or_nothing(absmax, t)
            for t in tensors
            for absmax in (t.exp_avg_absmax, t.exp_avg_sq_absmax)
        ]
    return positional, keywords


def _given(tensors: Sequence[torch.Tensor] | None, i: int) -> torch.Tensor | None:
    """Number i of a list in which a tensor without elements stands for none."""
    if tensors is None or not tensors[i].numel():
        return None
    return tensors[i]


def _or_nothing(tensor: torch.Tensor | None, t: AdamWTensor) -> torch.Tensor:
    """A list of the dispatcher's has a tensor for each."""
    return t.step.new_empty(0) if tensor is None else tensor


def _with_plain_strides(t: AdamWTensor) -> AdamWTensor:
    value, grad = t.value, t.grad
    if grad.stride() != value.stride():
        grad = torch.empty_like(value).copy_(grad)
    layout = t.layout
    if layout is not None:
        layout = layout._replace(index=layout.index.contiguous())
    return dataclasses.replace(t, grad=grad, layout=layout)


def _check_optional(name: str, given: Sequence | None, count: int) -> None:
    if given is not None and len(given) != count:
        raise ValueError(
            f"{name}: expected None or {count} items, one a tensor of values, got {len(given)}"
        )


def _check_absmaxes(absmaxes: Sequence[torch.Tensor] | None, count: int) -> None:
    if absmaxes is not None and len(absmaxes) != 2 * count:
        raise ValueError(
            f"absmaxes: expected None or {2 * count} items, two a tensor, got {len(absmaxes)}"
        )


def _check_layouts(
    weights: Sequence[torch.Tensor],
    kinds: Sequence[str],
    indices: Sequence[torch.Tensor],
    blocks: Sequence[int],
    count: int,
) -> None:
    linked = len(weights)
    if not linked == len(kinds) == len(indices) == len(blocks) / 2 or linked > count:
        raise ValueError(
            "weights: expected one kind, index and block size a weight and at most"
            f" {count} weights, got {linked}, {len(kinds)}, {len(indices)} and {len(blocks)} / 2"
        )


def _check_scalar(name: str, scalar: torch.Tensor | None) -> None:
    if scalar is not None and scalar.numel() != 1:
        raise ValueError(f"{name}: expected one element, got shape {tuple(scalar.shape)}")
    if scalar is not None and scalar.dtype != torch.float32:
        raise TypeError(f"{name}: expected torch.float32, got {scalar.dtype}")
