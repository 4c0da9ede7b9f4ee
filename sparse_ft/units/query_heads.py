"""Query heads: what makes the queries of one head, with what reads that head.

Heads that share keys and values are one unit of "heads". A query head is less: of what an output
projection reads, the part that comes of features at the same position alone, which queries are
(and gates of an output); keys and values are read at other positions too.
"""

from collections.abc import Mapping, Sequence

import torch

from .joining import Key
from .parting import NONE, parted
from .probe import Probe, Source
from .unit import Group, Share
from .watching import Cut

Biases = Mapping[Key, str]


class Here(Probe):
    """A probe that ties together by features which are read at their own position alone.

    here: of each source, bool, these features.
    """

    here: list[torch.Tensor] | None = None

    def tying(self, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """`rows` without those that are read elsewhere, or tie nothing together."""
        if self.here is None:
            self.here = self.read_here()
        return [mine & here for mine, here in zip(super().tying(rows), self.here)]


def query_heads(readers: list[Cut], sources: list[Source], biases: Biases) -> Group | None:
    """The query heads of an input; None where there are none.

    readers: the products that have this input. sources: what may make its features, with the keys
    of parameters. biases: {such a key: the bias that is added}.
    """
    product, input = readers[0].product, readers[0].input
    assert input is not None, "what is read by nobody is no reader's"
    probe = Here(input, product.input_dim, sources)
    parts = parted(probe)
    if not parts.count or probe.here is None:
        return None
    shares = []
    for source, here, labels in zip(probe.sources, probe.here, parts.rows):
        index, owner = _by_owner(torch.where(here, labels, NONE))
        if not source.ties or not len(index):
            continue
        shares.append(Share(source.key.parameter, source.key.dimension, index, owner))
        if source.key in biases:
            shares.append(Share(biases[source.key], 0, index, owner))
    index, owner = _by_owner(parts.columns)
    if not shares or len(index) == parts.count:
        return None
    for reader in readers:
        taken = reader.product
        shares.append(Share(taken.parameter, taken.takes, index, owner, takes=True))
    return Group("query_heads", "", parts.count, tuple(shares))


def _by_owner(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(index, owner) of the features that have an owner, ascending by owner, then by index."""
    index = (labels >= 0).nonzero().flatten()
    order = labels[index].sort(stable=True).indices
    return index[order], labels[index][order]
