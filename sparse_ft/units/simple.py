"""Units that need no probing: experts, layers, neurons and embedding rows."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from .unit import Group, Share, along, whole
from .watching import Cut

Named = Mapping[str, nn.Parameter]


def neurons(named: Named, cuts: list[Cut]) -> list[Group]:
    """Each output of each product: its row of the weight, and its bias."""
    found = {}
    for cut in cuts:
        product = cut.product
        if product.input is None and cut.input is None:
            continue  # an embedding
        weight = named[product.parameter]
        size = weight.size(product.makes)
        if product.expert is None:
            shares = [along(product.parameter, product.makes, size)]
            if product.bias is not None:
                shares.append(along(product.bias, 0, size))
            found[product.parameter] = Group("neurons", product.parameter, size, tuple(shares))
        else:
            count = weight.size(0)
            every = torch.arange(size, device="cpu")
            rows = [
                Share(product.parameter, product.makes, every, every + expert * size, expert)
                for expert in range(count)
            ]
            group = Group("neurons", product.parameter, size * count, tuple(rows))
            found[product.parameter] = group
    return list(found.values())


def embedding_rows(named: Named, cuts: list[Cut]) -> list[Group]:
    """Each row of each embedding."""
    found = {}
    for cut in cuts:
        if cut.input is None:
            name = cut.product.parameter
            rows = along(name, cut.product.takes, named[name].size(cut.product.takes))
            found[name] = Group("embedding_rows", name, len(rows.index), (rows,))
    return list(found.values())


def layers(model: nn.Module, named: Named, mixtures: set[str]) -> list[Group]:
    """Each block of the outermost lists of like blocks: all of its parameters.

    mixtures: sites of experts, which are no layers.
    """
    found: list[Group] = []
    for path, module in model.named_modules():
        if path in mixtures or any(path.startswith(f"{group.site}.") for group in found):
            continue
        blocks = _blocks(module)
        if len(blocks) < 2:
            continue
        shares = []
        for number, child in enumerate(blocks):
            inside = f"{path}.{child}." if path else f"{child}."
            shares += [whole(name, number) for name in named if name.startswith(inside)]
        if shares:
            found.append(Group("layers", path, len(blocks), tuple(shares)))
    return found


def _blocks(module: nn.Module) -> list[str]:
    """Names of the children of a list that are of one class and have parameters."""
    if not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return []
    children = dict(module.named_children())
    classes = {type(child) for child in children.values()}
    has_all = all(any(True for _ in child.parameters()) for child in children.values())
    return list(children) if len(classes) == 1 and has_all else []


def experts(
    model: nn.Module, named: Named, cuts: list[Cut], feeds: set[tuple[str, str]]
) -> list[Group]:
    """Each expert: its slice of every parameter that holds all, or all parameters of its module.

    feeds: (name, name) of parameters of which the first's output reaches the second's input.
    """
    return [*_in_one_parameter(named, cuts), *_in_modules(model, named, cuts, feeds)]


def _in_one_parameter(named: Named, cuts: list[Cut]) -> list[Group]:
    counts: dict[str, int] = {}
    for cut in cuts:
        if cut.product.expert is not None:
            name = cut.product.parameter
            counts[name.rpartition(".")[0]] = named[name].size(0)
    found = []
    for path, count in counts.items():
        mine = [name for name in named if name.rpartition(".")[0] == path]
        shares = [
            along(name, 0, count)
            for name in mine
            if named[name].dim() >= 2 and named[name].size(0) == count
        ]
        found.append(Group("experts", path, count, tuple(shares)))
    return found


def _in_modules(
    model: nn.Module, named: Named, cuts: list[Cut], feeds: set[tuple[str, str]]
) -> list[Group]:
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        inside = [f"{path}.{number}." for number in range(len(module))]
        is_alike = len({_form(child) for child in module}) == 1
        if is_alike and _is_routed(inside, cuts, feeds):
            shares = [
                whole(name, number)
                for number, prefix in enumerate(inside)
                for name in named
                if name.startswith(prefix)
            ]
            found.append(Group("experts", path, len(module), tuple(shares)))
    return found


def _form(module: nn.Module) -> tuple:
    """What modules that are built alike have in common."""
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    return type(module), tuple(shapes)


def _is_routed(inside: list[str], cuts: list[Cut], feeds: set[tuple[str, str]]) -> bool:
    """Whether none of these modules feeds another, and they see different numbers of tokens."""
    seen: dict[str, int] = {}
    for cut in cuts:
        for prefix in inside:
            if cut.product.parameter.startswith(prefix) and cut.input is not None:
                seen.setdefault(prefix, cut.input.numel())
    for before, after in feeds:
        homes = {prefix for prefix in inside if before.startswith(prefix)}
        others = {prefix for prefix in inside if after.startswith(prefix)}
        if homes and others and homes != others:
            return False
    tokens: Iterator[int] = iter(seen.values())
    return bool(seen) and (len(seen) < len(inside) or len(set(tokens)) > 1)
