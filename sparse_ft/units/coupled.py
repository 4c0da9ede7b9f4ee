"""Heads and channels: features that the next product reads, with all that makes them.

Two features belong together when something before them reaches both. Take a consumer's columns of
one unit to zero: exactly the rows of that unit lose their gradient.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import torch

from .joining import Joint, Key
from .parting import NONE, SEVERAL, Parts, parted
from .probe import Probe, Source
from .products import EVERY, Product
from .query_heads import query_heads
from .unit import Group, Share
from .watching import Cut

WHOLE, UNREACHED = "read otherwise than by a product of torch's", "no gradient reached it"


@dataclasses.dataclass
class Coupling:
    """What has been found so far, over one or several runs.

    parameters: {name: parameter}. joint: what belongs together. mixing: what is read across
    positions, as attention's output is. convolutions: names of their weights. reached: which
    features a gradient reached. loose: parameters that were read otherwise than by products.
    feeds: (name, name) where the first's output reaches the second's input. queries: {a reader
    across positions: its query heads}. biases: {features that a product makes: its bias}.
    """

    parameters: Mapping[str, torch.Tensor]
    joint: Joint = dataclasses.field(default_factory=Joint)
    mixing: set[Key] = dataclasses.field(default_factory=set)
    convolutions: set[str] = dataclasses.field(default_factory=set)
    reached: dict[Key, torch.Tensor] = dataclasses.field(default_factory=dict)
    loose: set[str] = dataclasses.field(default_factory=set)
    feeds: set[tuple[str, str]] = dataclasses.field(default_factory=set)
    queries: dict[Key, Group] = dataclasses.field(default_factory=dict)
    biases: dict[Key, str] = dataclasses.field(default_factory=dict)

    def add(self, cuts: Iterable[Cut], results: Iterable[torch.Tensor]) -> None:
        """What one run tells. results: what the model gave, in which every feature counts."""
        cuts = list(cuts)
        sources = [*self._made(cuts), *self._others(cuts)]
        for cut in cuts:
            if cut.product.is_convolution:
                self.convolutions.add(cut.product.parameter)
            self._add_bias(cut)
        for readers in _by_input(cuts):
            self._ask(readers, sources)
        for result in results:
            self._result(result, sources)

    def _made(self, cuts: list[Cut]) -> list[Source]:
        return [
            Source(cut.output, cut.product.output_dim, True, makes(cut.product)) for cut in cuts
        ]

    def _others(self, cuts: list[Cut]) -> list[Source]:
        """Parameters that no product reads, which may go with a unit (a norm's weight)."""
        read = {cut.product.parameter for cut in cuts} | {cut.product.bias for cut in cuts}
        return [
            Source(parameter, 0, False, Key(name, 0, None, False))
            for name, parameter in self.parameters.items()
            if name not in read and parameter.requires_grad and parameter.dim()
        ]

    def _add_bias(self, cut: Cut) -> None:
        product = cut.product
        if product.bias is None:
            return
        self.biases[makes(product)] = product.bias
        size = cut.output.size(product.output_dim)
        nodes = self.joint.nodes(makes(product), size)
        key = Key(product.bias, 0, None, False)
        self.joint.note(key, torch.arange(size, device="cpu"), int(nodes[0]))

    def _ask(self, readers: list[Cut], sources: list[Source]) -> None:
        """Part the input of `readers`, which all have the same."""
        product, input = readers[0].product, readers[0].input
        assert input is not None, "what is read by nobody is no reader's"
        probe = Probe(input, product.input_dim, sources)
        ties = any(source.ties for source in probe.sources)
        if not ties:
            return
        parts = parted(probe)
        first = self.joint.part(parts.count)
        self._record(probe, parts, first)
        is_mixing = probe.mixes_positions()
        for reader in readers:
            key = takes(reader.product)
            self.joint.tie(key, parts.columns, first)
            if is_mixing:
                self.mixing.add(key)
            for source in probe.sources:
                self.feeds.add((source.key.parameter, key.parameter))
        if is_mixing:
            group = query_heads(readers, sources, self.biases)
            if group is not None:
                self.queries[takes(readers[0].product)] = group

    def _record(self, probe: Probe, parts: Parts, first: int) -> None:
        for source, labels in zip(probe.sources, parts.rows):
            if source.ties:
                self.joint.tie(source.key, labels, first)
                self._reach(source.key, labels != NONE)
            else:
                self.joint.note(source.key, labels, first)
                self.loose.add(source.key.parameter)

    def _result(self, result: torch.Tensor, sources: list[Source]) -> None:
        probe = Probe(result if result.dim() else result.reshape(1), -1, sources)
        for source, rows in zip(probe.sources, probe.rows(probe.every)):
            if source.ties:
                self.joint.drop(self.joint.nodes(source.key, source.size)[rows])
                self._reach(source.key, rows)
            else:
                self.joint.note(source.key, torch.where(rows, SEVERAL, NONE), 0)
                self.loose.add(source.key.parameter)

    def _reach(self, key: Key, rows: torch.Tensor) -> None:
        before = self.reached.get(key, torch.zeros_like(rows))
        self.reached[key] = before | rows

    @property
    def is_complete(self) -> bool:
        """Whether every feature of every product was reached by a gradient."""
        return all(bool(rows.all()) for rows in self.reached.values())

    def groups(self) -> list[Group]:
        """Heads, query heads and channels, by site."""
        found = self._coupled()
        heads = [group for group in found if group.kind == "heads"]
        read = {share.parameter for group in heads for share in group.shares if share.takes}
        return [*found, *(g for key, g in self.queries.items() if key.parameter in read)]

    def _coupled(self) -> list[Group]:
        components = self.joint.components()
        found = {}
        for key, component in components.items():
            known = component >= 0
            if known.any():
                found[key] = component, known
        return [
            group
            for keys, numbers in _alike(found)
            if (group := self._group(keys, numbers, found)) is not None
        ]

    def _group(self, keys: list[Key], numbers: torch.Tensor, found: Mapping) -> Group | None:
        """The units `numbers`, which have features of all `keys` and of no others."""
        if {key.takes for key in keys} != {True, False}:
            return None
        experts = {key.expert for key in keys}
        if EVERY in experts and len(experts) > 1:
            return None
        kind = self._kind(keys, numbers, found)
        count = len(numbers)
        if count == 1 and kind != "heads":
            return None  # all of them: nothing to choose from
        copies = 1
        if EVERY in experts:
            copies = self.parameters[keys[0].parameter].size(0)
        shares = []
        for key in sorted(keys, key=lambda key: key.takes):
            index, owner = _members(found[key][0], numbers)
            for copy in range(copies):
                expert = copy if EVERY in experts else None
                shares.append(
                    Share(
                        key.parameter, key.dimension, index, owner + copy * count, expert, key.takes
                    )
                )
        return Group(kind, "", count * copies, tuple(shares))

    def _kind(self, keys: list[Key], numbers: torch.Tensor, found: Mapping) -> str:
        if any(key.parameter in self.convolutions for key in keys):
            return "convolution_channels"
        taken = [key for key in keys if key.takes]
        wide = any(len(_members(found[key][0], numbers)[0]) > len(numbers) for key in taken)
        return "heads" if wide and self.mixing.intersection(taken) else "channels"

    def undecided(self, groups: Iterable[Group]) -> dict[str, str]:
        """{parameter name: why} of what could not be told. groups: heads and channels."""
        read = {key.parameter for key in self.joint.sizes}
        read |= {share.parameter for group in groups for share in group.shares}
        why = {}
        for name, parameter in self.parameters.items():
            if name in read or parameter.dim() < 2:
                continue
            why[name] = WHOLE if name in self.loose else UNREACHED
        for key, rows in self.reached.items():
            if not rows.all():
                few = int((~rows).sum())
                why[key.parameter] = f"no gradient reached {few} of its {len(rows)} features"
        return why


def makes(product: Product) -> Key:
    """The features that a product makes."""
    return Key(product.parameter, product.makes, _alike_expert(product), False)


def takes(product: Product) -> Key:
    """The features that a product reads."""
    return Key(product.parameter, product.takes, _alike_expert(product), True)


def _alike_expert(product: Product) -> int | None:
    """Experts of one parameter run through the same lines: one stands for all."""
    return None if product.expert is None else EVERY


def _by_input(cuts: list[Cut]) -> list[list[Cut]]:
    """Products by what they read; of the experts in one parameter, the one with most tokens."""
    most: dict[Key, Cut] = {}
    for cut in cuts:
        if cut.input is not None and cut.product.expert is not None:
            key, tokens = takes(cut.product), _tokens(cut)
            if key not in most or tokens > _tokens(most[key]):
                most[key] = cut
    chosen = {id(cut) for cut in most.values()}
    by_input: dict[int, list[Cut]] = {}
    for cut in cuts:
        is_one = cut.product.expert is None or id(cut) in chosen
        if cut.input is not None and is_one and cut.input.requires_grad:
            by_input.setdefault(id(cut.input), []).append(cut)
    return list(by_input.values())


def _tokens(cut: Cut) -> int:
    return 0 if cut.input is None else cut.input.numel()


def _alike(found: Mapping[Key, tuple]) -> list[tuple[list[Key], torch.Tensor]]:
    """(keys, the components that have features of exactly these), in order."""
    keys_of: dict[int, list[Key]] = {}
    for key, (component, known) in found.items():
        for number in component[known].unique().tolist():
            keys_of.setdefault(number, []).append(key)
    alike: dict[tuple[Key, ...], list[int]] = {}
    for number in sorted(keys_of):
        alike.setdefault(tuple(keys_of[number]), []).append(number)
    return [(list(keys), torch.tensor(numbers, device="cpu")) for keys, numbers in alike.items()]


def _members(component: torch.Tensor, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(index, owner) of the features whose component is one of the sorted `numbers`."""
    index = torch.isin(component, numbers).nonzero().flatten()
    owner = torch.searchsorted(numbers, component[index])
    order = owner.sort(stable=True).indices
    return index[order], owner[order]
