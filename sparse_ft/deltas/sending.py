"""patches: what changed since the last time, for an engine that serves the model while it trains.

A selective run knows which entries can have changed. Engines elsewhere find them by comparing the
model with a snapshot of itself after each step.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..selection import Selection
from . import places
from .fingerprint import bits_of

_INDEX_BYTES = 4


class Patch(NamedTuple):
    """New numbers of one tensor of a checkpoint.

    indices: [n] int32, ascending flat positions in the tensor; None: those that were last sent for
    it whole. values: [n], in the dtype of the weight. full_shape: of the tensor. is_part: whether
    the indices are some of those that train, or have left the selection: not to be remembered.
    """

    name: str
    indices: torch.Tensor | None
    values: torch.Tensor
    full_shape: tuple[int, ...]
    is_part: bool = False

    @property
    def whole_indices(self) -> torch.Tensor:
        """The indices, which `Patches.with_indices` and `Engine.complete` give to each patch."""
        if self.indices is None:
            raise ValueError(f"patches: {self.name!r} has the indices that were sent before")
        return self.indices

    @property
    def nbytes(self) -> int:
        """What it takes to send it, names and shapes aside."""
        index = 0 if self.indices is None else self.indices.numel() * _INDEX_BYTES
        return index + self.values.numel() * self.values.element_size()


class _Sent(NamedTuple):
    """What an engine that has taken all patches holds of one tensor."""

    selection: Selection | None
    positions: torch.Tensor  # [n] int32, ascending
    values: torch.Tensor  # [n]
    left: torch.Tensor  # [m] int32, ascending: others that have trained
    left_values: torch.Tensor  # [m]


class Patches(Sequence):
    """The patches of one step, in checkpoint coordinates; pickled, they are what an engine needs.

    version: counts from 1. base_version: what an engine must hold, the version before; 0: the
    checkpoint that training began from.
    """

    def __init__(self, patches: Sequence[Patch], version: int, sent: dict[str, _Sent]):
        self._patches = list(patches)
        self.version = version
        self._sent = sent

    @property
    def base_version(self) -> int:
        return self.version - 1

    @property
    def nbytes(self) -> int:
        """What it takes to send them, names and shapes aside."""
        return sum(patch.nbytes for patch in self)

    def __getitem__(self, at: Any) -> Any:
        return self._patches[at]

    def __len__(self) -> int:
        return len(self._patches)

    def __getstate__(self) -> dict[str, Any]:
        return {"_patches": self._patches, "version": self.version, "_sent": {}}

    def with_indices(self) -> "Patches":
        """These patches, each with its indices.

        For engines that do not remember them (vLLM, TRL, slime).
        """
        patches = [
            patch if patch.indices is not None else patch._replace(indices=self._known(patch.name))
            for patch in self
        ]
        return Patches(patches, self.version, self._sent)

    def _known(self, name: str) -> torch.Tensor:
        if name not in self._sent:
            raise ValueError(
                f"patches: the indices of {name!r} stayed with the process that made them; call"
                " with_indices() there, or use sft.deltas.Receiver here"
            )
        return self._sent[name].positions


@torch.no_grad()
def patches(model: nn.Module, since: Patches | None = None) -> Patches:
    """What changed in `model`, which `sft.convert` has converted, since the patches `since`.

    since: what this function gave last time; None: the first time. The first time every entry that
    trains is sent with its index. From then on a tensor sends its values alone, at most as many
    bytes as its selected entries have, or, where that is shorter, what changed with its index, or
    nothing where no bit did. No snapshot of the model is kept and no weight is compared: what was
    sent is remembered, 6 bytes a selected entry of a 16-bit model. Values are what the weights
    show, so an engine that takes all patches holds the trainer's bits. A selection that has changed
    since is sent anew, with the entries that have trained and left it.

    Names are those of `model.state_dict()`. Buffers are not sent. Raises ValueError for a model
    that is not converted, TypeError for another `since`, OverflowError for a tensor of 2^31 or more
    entries.
    """
    if since is not None and not isinstance(since, Patches):
        raise TypeError(
            f"since: expected what sft.patches gave, or None, got {type(since).__name__}"
        )
    before = {} if since is None else since._sent
    if since is not None and len(since) and not before:
        raise ValueError(
            "since: it was pickled, so what it had sent is forgotten; keep the original"
        )
    sent, made = {}, []
    for each in places.trained(model):
        if each.layer is not None:
            raise ValueError(
                f"model: {each.name!r} is quantised, and no engine has a place for values over its"
                " codes; sft.save_delta keeps them, sft.merge_quantised writes them into the weight"
            )
        of_tensor, sent[each.name] = _patch(each, before.get(each.name))
        made += of_tensor
    return Patches(made, 1 if since is None else since.version + 1, sent)


def _patch(each: places.Trained, before: _Sent | None) -> tuple[list[Patch], _Sent]:
    """The patches of one tensor, and what an engine holds that has taken them."""
    weight, shape = each.weight.reshape(-1), tuple(each.weight.shape)
    if before is None or before.selection != each.selection:
        positions = _positions(each)
        left = _left(each, before, positions)
        now = _Sent(each.selection, positions, weight[positions], left, weight[left])
        made = [Patch(each.name, positions, now.values, shape)]
        made.insert(0, Patch(each.name, left, now.left_values, shape, is_part=True))
        return [patch for patch in made if len(patch.values)], now
    values, left = weight[before.positions], _left(each, before, before.positions)
    now = before._replace(values=values, left=left, left_values=weight[left])
    changed = (bits_of(values) != bits_of(before.values)).nonzero().squeeze(1)
    made = []
    if not _same(now, before):
        made.append(Patch(each.name, left, now.left_values, shape, is_part=True))
    if len(changed):
        some = Patch(each.name, before.positions[changed], values[changed], shape, is_part=True)
        every = Patch(each.name, None, values, shape)
        made.append(min(every, some, key=lambda patch: patch.nbytes))
    return made, now


def _same(now: _Sent, before: _Sent) -> bool:
    """Whether entries that have left the selection are and hold what they were and held."""
    if not torch.equal(now.left, before.left):
        return False
    return torch.equal(bits_of(now.left_values), bits_of(before.left_values))


def _left(each: places.Trained, before: _Sent | None, positions: torch.Tensor) -> torch.Tensor:
    """What an engine may not know of the entries beside `positions`, [n] int32 each, ascending.

    An entry that has left the selection may hold its origin again. One that a reselection has left
    as it was trained may have joined and left since the last time, or before the first, and
    `sft.restore` moves it.
    """
    known = [] if before is None else [before.positions, before.left]
    if each.left is not None:
        known.append(each.left.positions.to(positions))
    beside = torch.cat([positions[:0], *known]).unique()
    return beside[~torch.isin(beside, positions, assume_unique=True)]


def _positions(each: places.Trained) -> torch.Tensor:
    if each.weight.numel() > 1 << 31:
        raise OverflowError(
            f"model: {each.name!r} has {each.weight.numel()} entries, and flat indices are int32"
        )
    if each.selection is None:
        return torch.arange(each.weight.numel(), dtype=torch.int32, device=each.weight.device)
    positions = places.positions_of(each.selection, each.matrix_shape)
    return positions[positions >= 0].sort().values.int()


class Receiver:
    """The engine's side: remembers the indices that it was sent, refuses a missing version."""

    def __init__(self, version: int = 0):
        self.version = version
        self._indices: dict[str, torch.Tensor] = {}

    def complete(self, received: Patches) -> list[Patch]:
        """`received` with the indices of each.

        Raises ValueError where patches before it are missing; nothing is remembered of it then.
        """
        if received.base_version != self.version:
            raise ValueError(
                f"patches: version {received.version} follows {received.base_version}, and this"
                f" engine has {self.version}; send it sft.patches(model) anew, all of it"
            )
        whole = [self._completed(patch) for patch in received]
        for patch, given in zip(whole, received):
            if given.indices is not None and not given.is_part:
                self._indices[patch.name] = given.indices
        self.version = received.version
        return whole

    def _completed(self, patch: Patch) -> Patch:
        if patch.indices is not None:
            return patch
        return patch._replace(indices=self._indices[patch.name])

    @torch.no_grad()
    def apply(self, model: nn.Module, received: Patches) -> None:
        """Write `received` into the parameters of `model`, an ordinary module."""
        for patch in self.complete(received):
            tensor = places.tensor_of(*places.owner_of(model, patch.name))
            tensor.view(-1)[patch.whole_indices.to(tensor.device)] = patch.values.to(tensor.device)
