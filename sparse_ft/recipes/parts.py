"""Parts of a model that recipes speak of: attention, feed-forward, blocks, experts, adapters."""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sized
from typing import Any

from torch import nn

from ..nn.linear import is_conv1d
from ..salience.recompute import members_of_lists
from ..salience.targets import targets_of
from .settings import check_count

ATTENTION = ("attention", "attn")  # in names of modules, whatever their case
IN_TARGETS = "name them in targets="
IN_A_PLAN = "name what trains in sft.Plan.match(model, {pattern: 'all'})"


def weights_of(model: nn.Module, targets: str | Iterable[str] | None = None) -> list[str]:
    """The weights that `sft.select` would choose from."""
    return list(targets_of(model, targets).weights)


def is_attention(name: str) -> bool:
    """Whether a parameter is one of attention, by the names of the modules it lies in."""
    path = name.rpartition(".")[0].lower()
    return any(word in path for word in ATTENTION)


def attention_and_rest(model: nn.Module, targets: Any = None) -> dict[str, list[str]]:
    """{"attention": weights, "rest": the others} of what is chosen from."""
    names = weights_of(model, targets)
    attention = [name for name in names if is_attention(name)]
    return {"attention": attention, "rest": [name for name in names if name not in attention]}


def blocks_of(model: nn.Module) -> dict[str, list[str]]:
    """{block: the names of its parameters}, of the members of the model's lists."""
    parameters = [name for name, _ in model.named_parameters()]
    members = members_of_lists(model)
    if not members:
        raise ValueError(
            f"model: it has no nn.ModuleList, whose members would be its blocks; {IN_A_PLAN}, or"
            " sft.Rotate(…, units={label: pattern}) for turns"
        )
    return {block: [n for n in parameters if n.startswith(f"{block}.")] for block in members}


def check_blocks(name: str, count: Any, blocks: Sized) -> None:
    """Raise ValueError unless `count` is a number of blocks that there are."""
    check_count(name, count)
    if count > len(blocks):
        raise ValueError(f"{name}: the model has {len(blocks)} blocks, got {count}")


def features(model: nn.Module, name: str) -> tuple[int, int]:
    """(into, out of) a linear layer, by the name of its weight."""
    module: Any = model.get_submodule(name.rpartition(".")[0])
    first, second = module.weight.shape[0], module.weight.flatten(1).shape[1]
    return (first, second) if is_conv1d(type(module)) else (second, first)


def width_of(model: nn.Module, names: list[str]) -> int:
    """The width of the residual stream: what most weights of the blocks read."""
    reads = Counter(features(model, name)[0] for name in names)
    return reads.most_common(1)[0][0]


def into_feed_forward(model: nn.Module, targets: Any = None) -> list[str]:
    """Gate and up: the weights beside attention that read the residual stream and write another
    width.
    """
    names = weights_of(model, targets)
    width = width_of(model, names)
    blocks = tuple(f"{block}." for block in blocks_of(model))
    found = []
    for name in names:
        reads, writes = features(model, name)
        is_inner = name.startswith(blocks) and not is_attention(name)
        if is_inner and reads == width and writes != width:
            found.append(name)
    return _some(found, "feed-forward weights that read the residual stream", IN_TARGETS)


def routers_of(model: nn.Module) -> list[str]:
    """The parameters of the routers of a mixture of experts: those of the module that holds the
    experts, or of a small child of it, with one row an expert.
    """
    found = []
    for path, module in model.named_modules():
        experts = getattr(module, "experts", None)
        if not isinstance(experts, nn.Module):
            continue
        number = count_of(experts)
        for name, parameter in module.named_parameters():
            is_router = not name.startswith("experts.") and parameter.dim() == 2
            if is_router and parameter.size(0) == number:
                found.append(f"{path}.{name}".lstrip("."))
    return _some(found, "routers: expected modules with a child called 'experts'", IN_A_PLAN)


def count_of(experts: nn.Module) -> int:
    """How many experts a module holds: members of a list, or the first size of 3-D weights."""
    if isinstance(experts, nn.ModuleList):
        return len(experts)
    sizes = [p.size(0) for p in experts.parameters() if p.dim() == 3]
    return sizes[0] if sizes else 0


def adapters_of(model: nn.Module, half: str) -> list[str]:
    """The weights of LoRA's factor "A" or "B", as PEFT names them."""
    found = [n for n, _ in model.named_parameters() if fnmatch.fnmatchcase(n, f"*.lora_{half}.*")]
    return _some(found, f"LoRA: no weight called lora_{half}", "add an adapter with PEFT first")


def _some(names: list[str], what: str, way_out: str) -> list[str]:
    if not names:
        raise ValueError(f"model: it has no {what}; {way_out}")
    return names
