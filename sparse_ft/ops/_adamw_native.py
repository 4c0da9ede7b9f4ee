"""How the compiled part runs masked_adamw_: on tensors that it knows by their addresses."""

import dataclasses
from typing import Any

import torch

from . import _native
from ._adamw_call import Call
from ._adamw_state import StateFormat
from ._adamw_tensor import AdamWTensor, Flags, Settings
from ._library import wrote


@dataclasses.dataclass(slots=True)
class NativeCall:
    """One call. The four lists go along; what the addresses lead to must live until it is over."""

    tensors: list[Any]  # what `StateFormat.native` made
    grads: list[int]  # addresses, which may be others at every step
    settings: list[Any]  # what `native_settings` made
    written: list[torch.Tensor]  # what changes
    call: Call | None = None  # kept alive


def native_call(call: Call) -> NativeCall | None:
    """`call` for the compiled part; None where it holds a tensor that this does not take."""
    tensors = [_native_tensor(t) for t in call.tensors]
    if None in tensors:
        call = call.check().with_plain_strides()
        tensors = [_native_tensor(t) for t in call.tensors]
        if None in tensors:
            return None
    return NativeCall(
        tensors=tensors,
        grads=[t.grad.data_ptr() for t in call.tensors],
        settings=[native_settings(t.settings) for t in call.tensors],
        written=call.written(),
        call=call,
    )


def _native_tensor(t: AdamWTensor) -> Any:
    if not _native.alike(t.value, t.grad):
        return None
    return StateFormat.of(t).native(t)


def native_settings(settings: Settings) -> Any:
    """`settings` as the compiled part knows them, for as long as their `lr_at` lives."""
    return _native.C.AdamWSettings(
        settings.lr,
        settings.beta1,
        settings.beta2,
        settings.eps,
        settings.weight_decay,
        0 if settings.lr_at is None else settings.lr_at.data_ptr(),
    )


def step_on_cpu_(native: NativeCall, flags: Flags) -> None:
    """The step, on tensors in host memory."""
    if flags.found_inf is not None and flags.found_inf.item():
        return
    try:
        skipped = _native.C.masked_adamw_(
            native.tensors,
            native.grads,
            native.settings,
            flags.maximize,
            1.0 if flags.grad_scale is None else 1.0 / flags.grad_scale.item(),
            flags.skip_nonfinite,
            torch.get_num_threads(),
        )
    except IndexError:  # found on the way: an index was edited after it was checked
        wrote(*native.written)
        raise
    if not skipped:
        wrote(*native.written)
    elif flags.found_inf is not None:
        flags.found_inf.fill_(1)


def step_on_cuda_(native: NativeCall, flags: Flags, device: torch.device) -> None:
    """The step, enqueued on the current stream of `device`."""
    with torch.cuda.device(device):
        _native.C.masked_adamw_cuda_(
            native.tensors,
            native.grads,
            native.settings,
            flags.maximize,
            0 if flags.grad_scale is None else flags.grad_scale.data_ptr(),
            0 if flags.found_inf is None else flags.found_inf.data_ptr(),
            flags.skip_nonfinite,
            torch.cuda.current_stream().cuda_stream,
        )
    wrote(*native.written)
    if flags.found_inf is not None:
        wrote(flags.found_inf)
