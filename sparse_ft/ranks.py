"""Several processes (torchrun, DDP) that must choose and convert alike: what each of them wants is
compared, and all agree or all raise.

Every rank takes part in the same collectives, also one that has failed before: it tells the others,
who raise too, instead of leaving them to wait. A rank that never calls (it is busy, it has died, or
only rank 0 was meant to) cannot be told from a slow
one: after `PATIENCE` seconds the others say what they wait for, and torch.distributed's own timeout
ends the wait.
"""

import hashlib
import os
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed

from .selection import Selection

PATIENCE = 30.0  # seconds without a word

ALONE = (
    "process_group=False lets this process act by itself (on rank 0 alone, in a stage of a"
    " pipeline)"
)


class Ranks:
    """The processes that `process_group` names, for the length of one call of the public function
    `name`.

    process_group: None for all processes of torch.distributed, where it is initialised; a
    ProcessGroup; False for this process by itself. As a context it tells the others about an
    exception that comes before `agree` was called.
    """

    def __init__(self, name: str, process_group: Any = None) -> None:
        if (
            process_group is not None
            and process_group is not False
            and not _is_group(process_group)
        ):
            raise TypeError(
                "process_group: expected None, False or a ProcessGroup of torch.distributed, got"
                f" {process_group!r}"
            )
        self._name, self._asked = name, process_group is not False
        together = self._asked and distributed_is_initialized()
        self._group = process_group or None
        self._member = together and distributed.get_rank(self._group) >= 0
        self.size = distributed.get_world_size(self._group) if self._member else 1
        self.rank = distributed.get_rank(self._group) if self._member else 0
        self._agreed = False

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: Any
    ) -> None:
        if kind is not None and isinstance(error, Exception) and not self._agreed and self.size > 1:
            self.exchange({"error": f"{kind.__name__}: {error}"})

    def warn_if_early(self) -> None:
        """Say so where the launcher started several processes, and torch.distributed does not know
        of them yet.
        """
        if (
            self.size == 1
            and self._asked
            and not distributed_is_initialized()
            and os.environ.get("WORLD_SIZE", "1") != "1"
        ):
            warnings.warn(
                f"{self._name}: WORLD_SIZE={os.environ['WORLD_SIZE']} says that this process is one"
                " of several, and torch.distributed is not initialised, so each chooses by its own"
                f" batches; call init_process_group first. {ALONE}",
                stacklevel=3,
            )

    def agree(self, wanted: Mapping[str, str]) -> None:
        """Raise RuntimeError on every rank unless all want the same, or where one has failed; name
        the first difference.

        wanted: {name: text that says what of it}.
        """
        self._agreed = True
        if self.size == 1:
            return
        told = self._told(dict(wanted))
        for rank, what in enumerate(told):
            if what != told[0]:
                raise RuntimeError(f"{self._name}: {_difference(told[0], what, rank)}")

    def ask(self, what: Any) -> list:
        """What each rank says, in the order of the ranks. Raises RuntimeError on every rank where
        one has failed.
        """
        if self.size == 1:
            return [what]
        self._agreed = True  # who raises here has told the others all that they wait for
        told = self._told(what)
        self._agreed = False
        return told

    def of_first(self, what: Any) -> Any:
        """What the first rank says, on every rank."""
        if self.size == 1:
            return what
        said = [what]
        distributed.broadcast_object_list(said, group=self._group, group_src=0)
        return said[0]

    def _told(self, what: Any) -> list:
        """What each rank says in this call of the function; errors and other calls raise."""
        told = self.exchange({"call": self._name, "said": what})
        for rank, of_rank in enumerate(told):
            if "error" in of_rank:
                raise RuntimeError(
                    f"{self._name}: rank {rank} failed, so this one stops too: {of_rank['error']}"
                )
            if of_rank["call"] != self._name:
                raise RuntimeError(
                    f"{self._name}: rank {rank} is in {of_rank['call']} meanwhile; {ALONE}"
                )
        return [of_rank["said"] for of_rank in told]

    def begin(self) -> None:
        """What comes next may fail again, and ends with another `agree`."""
        self._agreed = False

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` with the sum over the ranks in it, in place; the same bits on each."""
        if self.size > 1:
            distributed.all_reduce(tensor, group=self._group)
        return tensor

    def exchange(self, what: Any) -> list:
        """What each rank has to say. Warns once it takes long."""
        told = [None] * self.size
        waiting = threading.Timer(PATIENCE, self._warn_of_waiting)
        waiting.daemon = True
        waiting.start()
        try:
            distributed.all_gather_object(told, what, group=self._group)
        finally:
            waiting.cancel()
        return told

    def _warn_of_waiting(self) -> None:
        warnings.warn(
            f"{self._name}: waiting for the other {self.size - 1} processes to call it too;"
            f" {ALONE}",
            stacklevel=2,
        )


def distributed_is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _is_group(thing: Any) -> bool:
    return distributed.is_available() and isinstance(thing, distributed.ProcessGroup)


def _difference(first: Mapping[str, str], other: Mapping[str, str], rank: int) -> str:
    name = next(n for n in [*first, *other] if first.get(n) != other.get(n))
    said = [
        what.get(name, "not in it").rpartition(" #")[0] or "not in it" for what in (first, other)
    ]
    return (
        f"{name!r} differs between ranks: {said[0]} on rank 0 and {said[1]} on rank {rank}, so they"
        " would train two models. Choose on all ranks by the same data and seed (sft.select sums"
        " gradients over the ranks once torch.distributed is initialised), or load one plan"
        f" everywhere; {ALONE}"
    )


def told(what: Selection | str) -> str:
    """A text that two ranks share if and only if they train the same entries: what a reader is
    told, then a digest.
    """
    if isinstance(what, str):
        return f"{what} #"
    index = what.index.detach().cpu().contiguous()
    there: Any = index.view(torch.uint8).numpy()
    digest = hashlib.blake2b(there, digest_size=16).hexdigest()
    return (
        f"{what!r} #{what.kind}, {tuple(index.shape)}, {index.dtype}, {tuple(what.block_size)},"
        f" {digest}"
    )
