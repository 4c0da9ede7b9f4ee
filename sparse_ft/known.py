"""What one call leaves for later ones: facts about tensors, found by the tensor itself.

The protocol, of everything in this package that travels beside the arguments of a call:

- a fact is about one tensor as it is now: told under its identity and version. A view, a copy and
  the same tensor after a write in place are other tensors, of which nothing is known;
- nothing lives for the sake of it: tensor and fact are held weakly. Who tells a fact sees to it
  that somebody holds it as long as it is of use (a node of autograd that saved it).

Users: outputs that can be made again and copies that layers share (`rebuild`), masks of attention
(`lean_modules.attention`).
"""

import weakref
from collections.abc import Hashable
from typing import Any

import torch

FEWEST = 64  # facts before the first look for dead ones


class Known:
    """Facts of one sort, by tensor and by `what` they say of it.

    There is no bound on how many are known: each costs 300 bytes, and dead ones are dropped when
    there are twice as many as were alive the last time.
    """

    __slots__ = "facts", "limit"

    def __init__(self) -> None:
        # (id of the tensor, what): (the tensor, its version, the fact), weakly. Plain tuples: every
        # forward makes some, and named ones take 0.4 µs.
        self.facts: dict[tuple, tuple[weakref.ref, int, weakref.ref]] = {}
        self.limit = FEWEST

    def tell(self, tensor: torch.Tensor, fact: Any, what: Hashable = None) -> None:
        """Let `of(tensor, what)` be `fact` until one of them is gone or the tensor is written to.

        fact: any object that can be referred to weakly. what: a `weakref.ref` where it is a tensor.
        Raises RuntimeError for a tensor of inference_mode, which has no version.
        """
        ref, facts = weakref.ref, self.facts
        facts[id(tensor), what] = ref(tensor), tensor._version, ref(fact)
        if len(facts) > self.limit:
            self.sweep()

    def of(self, tensor: torch.Tensor, what: Hashable = None) -> Any:
        """The fact, or None where nothing is known of the tensor as it is now.

        `rebuild.shared_copy`, which every layer asks, looks into `facts` by itself: a call takes as
        long as what it does.
        """
        known = self.facts.get((id(tensor), what))
        if known is None:
            return None
        about, version, fact = known
        return fact() if about() is tensor and version == tensor._version else None

    def alive(self) -> list[Any]:
        """Every fact that is not gone."""
        facts = [(about(), fact()) for about, _, fact in list(self.facts.values())]
        return [fact for about, fact in facts if about is not None and fact is not None]

    def sweep(self) -> None:
        """Drop dead facts; for who has told some by itself, once there are more than `limit`."""
        for key, (about, _, fact) in list(self.facts.items()):
            if about() is None or fact() is None:
                self.facts.pop(key, None)
        self.limit = max(FEWEST, 2 * len(self.facts))
