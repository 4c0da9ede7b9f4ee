"""Parameters that somebody else keeps in a form of their own (shards, codes, nothing yet), and
callers that bring no tensors.

A selection of such a parameter would train something else, or nothing. Each is refused by name,
with the way out.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..parallel.dtensors import is_sharded_tensor

# Which quantised weights can have selected entries, for messages.
QUANTISED = (
    "of quantised weights those of bitsandbytes' and torchao's linear layers can have selected"
    " entries, and others by a sparse_ft.quantised.Quantiser of yours"
)
MERGE = (
    "sft.merge_quantised(model) first writes them into the weights, and model.state_dict() has"
    " both as they are"
)
FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64
# What a class of tensors may define and still compute as torch.Tensor does.
HARMLESS = {
    "__new__",
    "__init__",
    "__repr__",
    "__str__",
    "__doc__",
    "__module__",
    "__dict__",
    "__weakref__",
    "__hash__",
}
HARMLESS |= {"__annotations__", "__deepcopy__", "__reduce_ex__"}
BY_ZERO = "get_full_hp_param"  # what DeepSpeed's ZeRO-1 and 2 hang on a parameter
# `sft.estimate` adds torch's tensors without memory
PLAIN: set[type] = {nn.Parameter, torch.Tensor}


def _class_of(module: str, name: str) -> type | tuple:
    """A public class of torch that nobody has met unless its module is imported; else what no
    object is an instance of.
    """
    return getattr(sys.modules.get(module), name, ())


def is_partitioned(tensor: torch.Tensor) -> bool:
    """Whether DeepSpeed's ZeRO-3 keeps it: whole in a forward or backward, elsewhere in parts."""
    return "ds_id" in tensor.__dict__


def why_not(weight: torch.Tensor) -> str | None:
    """Why selected entries of `weight` cannot train, and what to do instead; None where nothing
    speaks against it.
    """
    kind = type(weight)
    if is_lazy(weight):
        return (
            "a lazy module's, without shape or numbers before its first forward; run the model on"
            " one batch first"
        )
    if is_partitioned(weight):
        return (
            "kept in parts by DeepSpeed's ZeRO-3, which selections do not support; use ZeRO stage 1"
            " or 2"
        )
    if weight.dtype not in FLOATS:
        return (
            f"{weight.dtype}, so it is quantised or holds no weights; selected entries train in"
            f" float16, bfloat16, float32 or float64, and {QUANTISED}: load the model without"
            " quantisation, or leave this parameter out of the plan"
        )
    if not is_plain(kind) and not is_sharded_tensor(weight):
        return (
            f"a {kind.__name__}, which computes in its own way (quantised? {QUANTISED}); load the"
            " model without it, replace it by nn.Parameter of a plain tensor, or leave this"
            " parameter out of the plan"
        )
    return None


def check_weight(label: str, weight: torch.Tensor, values_dtype: torch.dtype | None = None) -> None:
    """Raise for a weight that cannot have selected entries (in `values_dtype`), naming it and the
    way out.
    """
    why = why_not(weight)
    if why is not None:
        raise (TypeError if weight.dtype not in FLOATS else ValueError)(f"{label}: {why}")
    if weight.is_inference() or torch.is_inference_mode_enabled():
        raise ValueError(
            f"{label}: created under inference_mode, or converted there, so nothing tells when it"
            " changes; do both outside"
        )
    if not weight.is_leaf:
        raise ValueError(
            f"{label}: computed from other tensors (parametrized?), not a parameter of its own"
        )
    if values_dtype is not None and torch.promote_types(values_dtype, weight.dtype) != values_dtype:
        raise TypeError(
            f"values_dtype: {values_dtype} does not hold every number of {label}, which is"
            f" {weight.dtype}; take a wider one"
        )


def check_numbers(label: str, weight: torch.Tensor) -> None:
    """Raise ValueError for a weight on the meta device."""
    if weight.device.type == "meta":
        raise ValueError(
            f"{label}: on the meta device, so it has no values to select from; load the model first"
            " (with several processes the first one, and sft.convert takes the rest from there)"
        )


def refuse_quantised(what: str, holder: Any, way_out: str) -> None:
    """Raise ValueError where the entries of `holder` train over a weight that is quantised, or that
    no process holds whole.

    what: the argument that names them.
    """
    if holder.has_cache:
        return
    why, other_way_out = holder.no_cache
    raise ValueError(f"{what}: {holder._sparse_ft_state.label!r} {why}; {other_way_out or way_out}")


def refuse_split(argument: str, model: nn.Module) -> None:
    """Raise ValueError where this process holds but a part of `model`, which is to be measured."""
    for name, parameter in model.named_parameters():
        if is_sharded_tensor(parameter):
            raise ValueError(
                f"{argument}: {name!r} is a DTensor (FSDP2, tensor parallel), of which this process"
                " holds a part; measure the model before it is cut"
            )


def is_plain(kind: type) -> bool:
    """Whether tensors of class `kind` compute as torch.Tensor does: nothing between it and
    nn.Parameter redefines anything.
    """
    for cls in kind.__mro__:
        if cls in PLAIN:
            return True
        if any(name not in HARMLESS and hasattr(torch.Tensor, name) for name in vars(cls)):
            return False
    return False


def why_managed(values: torch.Tensor, weight: torch.Tensor, are_known: bool) -> str | None:
    """Why a converted module cannot run, whose parameters somebody has taken over since; None where
    nobody has.

    are_known: whether values or weight are the objects that the module was given. FSDP2 shows a
    forward ordinary parameters, gathered into fresh memory, which belong to no shards that the
    module has met.
    """
    for tensor in (values, weight):
        if is_partitioned(tensor):
            return (
                "taken over by DeepSpeed's ZeRO-3, which releases it between forward and backward"
            )
    sharding = _class_of("torch.distributed.fsdp", "FSDPModule")
    if (
        not are_known
        and sharding
        and torch.distributed.is_initialized()
        and isinstance(values, nn.Parameter)
    ):
        return "taken over after sft.convert, as FSDP2 (fully_shard) does"
    return None


def check_whole(model: nn.Module) -> None:
    """Raise ValueError where FSDP wraps `model` or a part of it, or a lazy module has not seen its
    input yet.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"model: {name!r}: {why_not(parameter)}")
        if hasattr(parameter, BY_ZERO):
            raise ValueError(
                f"model: {name!r} is held by DeepSpeed's ZeRO (deepspeed.initialize) already, which"
                " would not step values that are made now; convert first, then initialize"
            )
    wrapper = _class_of("torch.distributed.fsdp", "FullyShardedDataParallel")
    for name, module in model.named_modules():
        if isinstance(module, wrapper):
            where = f"its {name!r}" if name else "it"
            raise ValueError(
                f"model: {where} is a FullyShardedDataParallel (FSDP1), whose shards selections do"
                " not support; use DistributedDataParallel (convert first, then wrap), or"
                " DeepSpeed's ZeRO-1 or 2"
            )
        if isinstance(module, _class_of("torch.distributed.fsdp", "FSDPModule")):
            where = f"its {name!r}" if name else "it"
            raise ValueError(
                f"model: {where} is sharded by FSDP2 (fully_shard) already, and would not gather"
                " values that are made now; convert first, then shard"
            )


@contextlib.contextmanager
def unswapped() -> Iterator[None]:
    """Casts and loads in here change parameters in the way of old: torch.__future__ may ask to swap
    tensors, which those that are referred to weakly refuse, after others were swapped."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(False)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


def refuse_tracing(label: str, inputs: tuple) -> None:
    """Raise RuntimeError where torch.fx traces, which brings no tensors; called where something has
    failed already.
    """
    if any(isinstance(x, torch.fx.Proxy) for x in inputs):
        raise RuntimeError(
            f"{label}: torch.fx.symbolic_trace cannot trace a module with selected entries; use"
            " torch.compile or torch.export, or sft.revert(model) first"
        ) from None
