"""estimate: what a training step will hold, told without weights, data or the time it
would take.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from .._torch import key_of
from ..lean_modules import lean as make_lean
from ..messages import described
from ..nn import Selected
from ..nn.foreign import refuse_split
from ..nn.origin import origins_in
from ..optim import SelectiveAdamW
from ..texts import aligned, readable
from ..token_losses.chunks import standing_for
from .batch import batch_for, loss_of
from .choosing import peak_of_choosing, split
from .dry import Dry
from .live import Live
from .specs import prepare
from .storages import model_storages, storages_of
from .table import Ledger
from .traffic import Traffic, Watch, check
from .watching import Watching, tokens_in

LINES = {
    "weights": "weights and buffers",
    "values": "values that train beside them",
    "indices": "which entries those are",
    "origin": "their pretrained values",
    "gradients": "gradients of what trains",
    "optimizer_state": "state of the optimiser",
    "activations": "held for backward",
    "peak": "most at once",
    "choosing": "most while choosing, once",
}
OPTIONAL = ("origin", "choosing")  # lines that are there where there is anything to say
NOTE = (
    "without what kernels allocate for themselves: little but for convolutions on a CPU, about a"
    " fifth of a small ResNet's peak"
)

OF_THE_WHOLE = "of a process that holds the whole model"


class Estimate(NamedTuple):
    """Bytes of one training step. peak counts everything.

    peaks: the same for forward, backward and step apart. choosing: the peak of `sft.select`, which
    comes once before, where the plan says by which score; else 0. traffic: what travels between
    devices, where a `world_size` was given; all else is of a process that holds the whole model.
    """

    weights: int
    values: int
    indices: int
    gradients: int
    optimizer_state: int
    activations: int
    peak: int
    peaks: dict
    ledger: Ledger
    origin: int = 0
    traffic: Traffic | None = None
    choosing: int = 0

    def __str__(self) -> str:
        told = side_by_side({"bytes": self})
        if self.traffic is None:
            return told
        return f"{told}\n{OF_THE_WHOLE}\n\n{self.traffic}"


def estimate(
    model_or_config: Any,
    plan: Any = None,
    batch_size: int = 1,
    sequence_length: int = 512,
    *,
    lean: bool | Mapping[str, Any] = False,
    optimizer: str | Callable | None = "adamw",
    dtype: torch.dtype | None = None,
    inputs: Mapping[str, Any] | None = None,
    padded: bool = False,
    values_dtype: torch.dtype | None = None,
    origin: bool = False,
    world_size: int | None = None,
    strategy: str = "ddp",
    device: str | torch.device | None = None,
) -> Estimate:
    """Bytes that training takes: an `Estimate`.

    The step itself is run (after `train()`), on tensors without data.

    model_or_config: an nn.Module, which is left alone, or a transformers config. plan: None for all
    of it, a Plan or mapping, {"structure": "columns", "density": 0.01, "targets": …} for a random
    selection (with "score", "combine", "accumulate", "passes", "recompute" and "loss" as in
    `sft.select`: also what choosing takes, `.choosing`), {"lora": 8, …} (needs peft), or a callable
    of the model that gives one of these or a model to train as it is. lean: with `sft.lean`; or
    its arguments, as {"loss": True}.
    optimizer: "adamw" (ours for selections, torch's fused one otherwise), "sgd", None, or a
    callable of the parameters. dtype: to cast the model to. inputs: {argument: tensor} of one
    batch, for models that transformers does not know; batch_size and sequence_length do not count
    then. padded: the batch has an attention mask. values_dtype, origin: as in `sft.convert`.
    Autocast is on where the caller has it on.

    device: that the training will be on, "cuda" for a GPU: a loss from hidden states takes the
    logits of more tokens at a time there, 512 or more. None: where the model is; a config is on the
    CPU. No such device is needed.

    world_size: also what a step moves between so many devices, each with a batch of its own
    (`.traffic`, a `Traffic`), under the strategy "ddp", "fsdp2" (`fully_shard` on each member of a
    ModuleList, and on the model) or "tensor_parallel" (as a transformers model's `tp_plan` cuts
    it). The memory is told of a process that holds the whole model, whatever the strategy.

    The peak is that of any step but the first: state is there, gradients are not yet. It lacks what
    kernels allocate for themselves (convolutions on the CPU reorder their operands: about a fifth
    of a small ResNet's peak), and says so in print. Raises TypeError or ValueError that name the
    argument.
    """
    if isinstance(model_or_config, nn.Module) and _is_selective(model_or_config):
        raise ValueError(
            "model_or_config: it was converted already; estimate first, or call sft.revert(model)"
        )
    if isinstance(model_or_config, nn.Module):
        refuse_split("model_or_config", model_or_config)
    for name, count in (("batch_size", batch_size), ("sequence_length", sequence_length)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}: expected a positive integer, got {count!r}")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype: expected a torch.dtype such as torch.bfloat16, got {dtype!r}")
    device = _device_of(device, model_or_config)
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TypeError(f"inputs: expected {{argument: tensor}}, got {described(inputs)}")
    if world_size is not None:
        check(world_size, strategy)
    dry = Dry()
    copied = dry.copy(model_or_config) if isinstance(model_or_config, nn.Module) else None
    with dry:
        if copied is None:
            model = _from_config(model_or_config, dtype)
        else:
            model = copied if dtype is None else copied.to(dtype)
        inputs = batch_for(model, batch_size, sequence_length, padded) if inputs is None else inputs
        inputs = {
            name: dry.like(what) if isinstance(what, torch.Tensor) else what
            for name, what in inputs.items()
        }
        weights = sum(storage.nbytes() for storage in _parameters(model).values())
        plan, chooses = split(plan)
        choosing = 0
        if chooses is not None:
            choosing = peak_of_choosing(model.train(), plan, chooses, inputs)
        model = prepare(model.train(), plan, dry, values_dtype, origin)
        traffic = None
        if world_size is not None:
            traffic = _traffic(model, inputs, world_size, strategy)
    if lean:
        # before the dry run: it tries its modules out on numbers, of which there are none in one
        make_lean(model, **(lean if isinstance(lean, Mapping) else {}))
    with dry, standing_for(device):
        told = _one_step(model, weights, inputs, _optimizer(optimizer, model))
    return told._replace(traffic=traffic, choosing=choosing)


def _device_of(device: Any, model: Any) -> torch.device:
    """That the step is meant for."""
    if device is None:
        first = next(iter(_parameters_of(model)), None)
        return torch.device("cpu") if first is None or first.device.type == "meta" else first.device
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device: expected a device such as 'cuda' or 'cpu', got {device!r}"
        ) from error


def _parameters_of(model: Any) -> Iterable[torch.Tensor]:
    return model.parameters() if isinstance(model, nn.Module) else ()


def _traffic(
    model: nn.Module, inputs: Mapping[str, Any], world_size: int, strategy: str
) -> Traffic:
    """Of a forward of its own: hooks would make a lean model keep more."""
    with Watch(model) as watch:
        model(**inputs)
    return Traffic(watch.facts(), world_size, strategy)


def _from_config(config: Any, dtype: torch.dtype | None) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise ImportError(
            "model_or_config: a config needs transformers; pip install transformers"
        ) from None
    # transformers 4 has the second name only
    base = getattr(transformers, "PreTrainedConfig", None) or transformers.PretrainedConfig
    if not isinstance(config, base):
        raise TypeError(
            "model_or_config: expected an nn.Module or a transformers config, got"
            f" {type(config).__name__}"
        )
    dtype = dtype or config.dtype or torch.float32
    config = copy.deepcopy(config)  # it is written to
    _keep_off_the_network(config, base)
    architectures = getattr(config, "architectures", None) or [None]
    first = architectures[0]
    named: Any = getattr(transformers, first, None) if isinstance(first, str) else None
    if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
        make: Any = named
        return make._from_config(config, dtype=dtype)
    known = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if not known and type(config) not in transformers.MODEL_MAPPING:
        own = (
            ""
            if not hasattr(config, "auto_map")
            else "; it asks to run code of its own (auto_map), which estimate does not do"
        )
        raise ValueError(
            f"model_or_config: transformers has no model for a {type(config).__name__}{own}; pass"
            " the model instead"
        )
    cls = transformers.AutoModelForCausalLM if known else transformers.AutoModel
    return cls.from_config(config, dtype=dtype, trust_remote_code=False)


def _keep_off_the_network(config: Any, base: type) -> None:
    """Pretrained backbones are left out of a config, for their sizes do not need them.

    Kernels of a repository are refused.
    """
    for part in (config, *(value for value in vars(config).values() if isinstance(value, base))):
        if getattr(part, "use_pretrained_backbone", False):
            part.use_pretrained_backbone = False
        attention = getattr(part, "_attn_implementation", None)
        if isinstance(attention, str) and "/" in attention:
            raise ValueError(
                f"model_or_config: its attention is {attention!r}, kernels to load from a"
                " repository, which estimate does not do; set attn_implementation to 'sdpa'"
            )


def _optimizer(optimizer: str | Callable | None, model: nn.Module) -> torch.optim.Optimizer | None:
    trained = [p for p in model.parameters() if p.requires_grad]
    if optimizer is None or callable(optimizer):
        return optimizer and optimizer(trained)
    if optimizer == "sgd":
        return torch.optim.SGD(trained, lr=1e-3)
    if optimizer == "adamw":
        if _is_selective(model):
            return SelectiveAdamW(trained)
        return torch.optim.AdamW(trained, fused=True)
    raise ValueError(
        "optimizer: expected 'adamw', 'sgd', None or a callable of the parameters, got"
        f" {optimizer!r}"
    )


def _is_selective(model: nn.Module) -> bool:
    return any(isinstance(module, Selected) for module in model.modules())


def _parameters(model: nn.Module) -> dict[int, torch.UntypedStorage]:
    held = [*model.parameters(), *model.buffers()]
    return {key_of(storage): storage for tensor in held for storage in storages_of(tensor)}


def _one_step(
    model: nn.Module,
    weights: int,
    inputs: Mapping[str, Any],
    optimizer: torch.optim.Optimizer | None,
) -> Estimate:
    live, watching = Live(), Watching(model)
    for storage in model_storages(model).values():
        live.follow(storage)
    everything = live.bytes
    values = sum(storage.nbytes() for storage in _parameters(model).values()) - weights
    peaks = {}
    with live:
        with watching:
            output = model(**inputs)
        held = watching.ledger(output, tokens_in((), inputs))
        loss = loss_of(output)
        del output
        peaks["forward"] = live.since()
        loss.backward()
        del loss
        peaks["backward"] = live.since()
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        state = 0
        if optimizer is not None:
            optimizer.step()  # makes the state, which every later step finds
            state = _state_bytes(optimizer)
            live.since()
            optimizer.step()
        peaks["step"] = live.since()
    for phase in ("forward", "backward"):
        peaks[phase] += state
    origin = sum(known.origin.nbytes for known, _ in origins_in(model))
    indices = everything - weights - values - origin
    return Estimate(
        weights,
        values,
        indices,
        gradients,
        state,
        held.total,
        max(peaks.values()),
        peaks,
        held,
        origin,
    )


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    held = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in held if isinstance(value, torch.Tensor))


def side_by_side(estimates: Mapping[str, Estimate]) -> str:
    """Text: one column an estimate. estimates: {label: Estimate}."""
    lines = [("", *estimates)]
    lines += [
        (what, *(readable(getattr(e, field)) for e in estimates.values()))
        for field, what in LINES.items()
        if field not in OPTIONAL or any(getattr(e, field) for e in estimates.values())
    ]
    return "\n".join([*aligned(lines, numbers=range(1, len(estimates) + 1)), NOTE])
