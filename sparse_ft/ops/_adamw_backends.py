"""What serves masked_adamw_: each takes a whole call and tells autograd what it wrote."""

from . import _native
from ._adamw_call import Call, arguments_of
from ._adamw_native import native_call, step_on_cpu_, step_on_cuda_
from ._adamw_state import StateFormat
from ._library import wrote
from ._registry import launcher


def on_cpu_(call: Call) -> None:
    """The compiled part, on tensors in host memory."""
    native = native_call(call)
    if native is None:
        raise _native.Unserved("a tensor that does not lie in memory in order")
    step_on_cpu_(native, call.flags)


def on_cuda_(call: Call) -> None:
    """The compiled kernels. Nothing is read back to the host, so that a CUDA graph can hold the
    step; a replay reads `lrs` anew, no other setting.
    """
    if not call.tensors:
        return
    call.check_device()
    device = call.tensors[0].value.device
    _native.require_device(device)
    native = native_call(call)
    if native is None:
        raise _native.Unserved("a strided weight, say")
    step_on_cuda_(native, call.flags, device)


def on_triton_(call: Call) -> None:
    """The Triton kernel, on a call that was checked."""
    if not all(StateFormat.of(t).is_plain for t in call.tensors):
        raise _native.Unserved("state in other dtypes than its values")
    positional, keywords = arguments_of(call)
    launcher("masked_adamw.masked_adamw_triton_")(*positional, **keywords)
    wrote(*call.written())
