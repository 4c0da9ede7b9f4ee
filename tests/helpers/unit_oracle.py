"""Units by brute force: silence all columns of a consumer but one, and see what gets a gradient.

Nothing of `sparse_ft` is used: a parameter is its flat entries, and what an entry belongs to is
told by whole backwards of the model.
"""

from typing import NamedTuple

import torch
from transformers.pytorch_utils import Conv1D

ZERO = 1e-13  # of gradients around 1, in fp64: attention's key bias has 1e-17, for softmax drops it


class Column(NamedTuple):
    """Entries of one parameter that read one feature: a column, a channel, an expert's column."""

    parameter: str
    entries: tuple[int, ...]  # flat


class Found(NamedTuple):
    """One unit. columns: what reads it. entries: {(parameter, flat entry)} of what makes it."""

    columns: frozenset[Column]
    entries: frozenset[tuple[str, int]]


class Oracle:
    """Brute force on one model and batch."""

    def __init__(self, model, batch):
        self.model, self.batch = model, batch
        self.named = dict(model.named_parameters())
        torch.manual_seed(1)
        self._weights = None
        self.first, start = {}, 0
        for name, parameter in self.named.items():
            self.first[name] = start
            start += parameter.numel()
        self.total = start
        self.alive = self.gradient()

    def gradient(self):
        """bool [all entries of the model]: which have a gradient."""
        output = self.model(**self.batch).logits
        if self._weights is None:
            self._weights = torch.randn_like(output)
        self.model.zero_grad(set_to_none=True)
        (output * self._weights).sum().backward()
        flat = []
        for parameter in self.named.values():
            gradient = parameter.grad
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            flat.append(gradient.flatten().abs() > ZERO)
        return torch.cat(flat)

    def name_of(self, entry):
        name = [n for n, first in self.first.items() if first <= entry][-1]
        return name, entry - self.first[name]

    def columns_of(self, path, module):
        """The columns of a consumer, as whoever wrote these classes knows them."""
        grids = {}
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{attribute}"
            if name not in self.named:
                continue  # a head that is tied to the embedding
            flat = torch.arange(parameter.numel()).view(parameter.shape)
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)):
                if attribute == "weight":
                    grids[name] = flat.transpose(0, 1)
            elif isinstance(module, Conv1D) and attribute == "weight":
                grids[name] = flat
            elif parameter.dim() == 3 and attribute in ("gate_up_proj", "down_proj"):
                for expert in range(len(parameter)):
                    grids[f"{name}[{expert}]"] = flat[expert].T
        columns = []
        for name, grid in grids.items():
            parameter = name.partition("[")[0]
            mine = [Column(parameter, tuple(row.flatten().tolist())) for row in grid]
            columns.append(mine)
        return columns

    def silenced(self, columns):
        """`gradient` with these columns at 0."""
        kept = {}
        with torch.no_grad():
            for name, entries in columns:
                flat = self.named[name].view(-1)
                index = torch.tensor(entries)
                kept[name, entries] = flat[index].clone()
                flat[index] = 0
            found = self.gradient_with_grad()
            for (name, entries), values in kept.items():
                self.named[name].view(-1)[torch.tensor(entries)] = values
        return found

    def gradient_with_grad(self):
        with torch.enable_grad():
            return self.gradient()

    def units(self, columns):
        """The units that are read by `columns` of one consumer and by nothing else."""
        columns = list(columns)
        reached = self.reached([[column] for column in columns])
        return set() if reached is None else set(self._components(columns, reached))

    def reached(self, sets):
        """bool [sets, entries]: which entries each set of columns alone sends a gradient to, of
        those that none reaches when all are silenced.
        """
        every = set().union(*sets)
        lost = self.alive & ~self.silenced(every)
        if not lost.any() or len(sets) < 2:
            return None
        alone = [self.silenced(every - set(columns)) & lost for columns in sets]
        reached = torch.stack(alone)
        # What every column reaches is before what makes them, or shared by all.
        return reached & ~reached.all(0)

    def made(self, sets):
        """Of units that are read by several consumers: what makes each, given its columns."""
        reached = self.reached(sets)
        return [
            Found(
                frozenset(columns), frozenset(map(self.name_of, row.nonzero().flatten().tolist()))
            )
            for columns, row in zip(sets, reached)
        ]

    def _components(self, columns, reached):
        linked = reached.double() @ reached.double().T > 0
        left = set(range(len(columns)))
        while left:
            mine = {left.pop()}
            while True:
                more = set(linked[list(mine)].any(0).nonzero().flatten().tolist()) | mine
                if more == mine:
                    break
                mine = more
            left -= mine
            entries = reached[list(mine)].any(0).nonzero().flatten().tolist()
            named = frozenset(map(self.name_of, entries))
            # A norm's scale alone is nothing that is made: some product must be.
            if any(self.named[name].dim() > 1 for name, _ in named):
                yield Found(frozenset(columns[number] for number in mine), named)

    def of_single_consumers(self):
        """The units of every consumer that reads its units alone."""
        found = set()
        for path, module in self.model.named_modules():
            for columns in self.columns_of(path, module):
                found |= self.units(columns)
        return found


def entries_of(parts, shapes):
    """{(parameter, flat entry)} of a unit's parts."""
    found = set()
    for part in parts:
        flat = torch.arange(shapes[part.parameter].numel()).view(shapes[part.parameter].shape)
        if part.expert is not None:
            flat = flat[part.expert]
        dimension = part.dimension - (part.expert is not None)
        chosen = flat.index_select(dimension, torch.tensor(part.index))
        found |= {(part.parameter, entry) for entry in chosen.flatten().tolist()}
    return frozenset(found)


def columns_of(unit, shapes):
    """The columns that read a unit, one a feature."""
    found = set()
    for part in unit.takes:
        for index in part.index:
            one = part._replace(index=(index,))
            entries = sorted(entry for _, entry in entries_of([one], shapes))
            found.add(Column(part.parameter, tuple(entries)))
    return frozenset(found)
