"""Exchange: the selection of one parameter, its values and its state become others."""

import dataclasses
from typing import Any

import torch
from torch import nn

from .. import ops
from ..carried import carry
from ..converted import RECORD, record_of
from ..nn.left import Left, left_after, with_left_origins
from ..nn.selected import Selected
from ..optim import SelectiveAdamW
from ..optim.exchange import Exchange as StateExchange
from ..optim.exchange import Exchanged, exchanged_of_another
from ..optim.member import Member
from ..selection import Selection
from .moves import Moves, positions
from .report import Reselected
from .seed import Seed


@dataclasses.dataclass(slots=True)
class New:
    """What the tensors of one parameter become."""

    values: torch.Tensor
    matrix_values: torch.Tensor | None  # the old entries of the weight, those that go as they were
    origin: torch.Tensor | None
    factor: torch.Tensor | None
    left: Left | None
    state: Exchanged


@dataclasses.dataclass(slots=True)
class Exchange:
    """All that is known of it before anything changes.

    member: where the values are in the optimiser; None: they are not.
    """

    model: nn.Module
    holder: Selected
    selection: Selection  # the new one
    member: Member | None
    restores: bool
    by_entry: bool
    seed: Seed | None

    @property
    def name(self) -> str:
        return self.holder._sparse_ft_state.label

    @property
    def values(self) -> nn.Parameter:
        return self.holder._parameters["values"]

    @property
    def shape(self) -> torch.Size:
        """Of the new values."""
        return self.selection.values_shape(self.holder._sparse_ft_state.matrix_shape)

    @property
    def keeps_parameter(self) -> bool:
        return self.shape == self.values.shape

    def carry_out(self) -> Reselected:
        """Returns what was done. Interrupted, it is wholly done or not at all."""
        holder, state = self.holder, self.holder._sparse_ft_state
        holder.sync()
        old = state.selection
        moves = Moves.between(old, self.selection, state.matrix_shape)
        new = self._new(moves)
        try:
            self._put(old, new)
        except BaseException:
            self._put(old, new)
            raise
        counts = moves.counts(state.matrix_shape, old, self.selection)
        return Reselected(self.name, *counts, rounded=new.state.rounded, merged=new.state.merged)

    def _new(self, moves: Moves) -> New:
        holder, state, values = self.holder, self.holder._sparse_ft_state, self.values.detach()
        matrix = holder._matrix()
        joining = ops.gather_selected(matrix, *self.selection.layout, dtype=values.dtype)
        origin = state.origin
        restored = None
        if self.restores:
            shown = ops.gather_selected(matrix, *state.selection.layout)
            restored = torch.where(moves.dropped_entries(values), origin, shown)
        new_positions = positions(self.selection, state.matrix_shape)
        if origin is not None:
            pretrained = with_left_origins(state.left, new_positions, joining.to(origin.dtype))
            origin = moves.moved(origin, pretrained)
        old_positions = positions(state.selection, state.matrix_shape)
        left = left_after(state, old_positions, new_positions, keeps=not self.restores)
        factor = state.factor
        if factor is not None:
            factor = moves.moved_factor(factor, values.shape)
        new_values = moves.moved(values, joining)
        exchanged_state = self._new_state(moves, values, new_values)
        return New(new_values, restored, origin, factor, left, exchanged_state)

    def _new_state(self, moves: Moves, values: torch.Tensor, new_values: torch.Tensor) -> Exchanged:
        member, seeded = self.member, None
        if member is None:
            return Exchanged({})
        if not isinstance(member.optimizer, SelectiveAdamW):
            return exchanged_of_another(member.state, values, moves.moved)
        if self.seed is not None:
            shape = self.holder._sparse_ft_state.matrix_shape
            seeded = self.seed.spread(positions(self.selection, shape).view(self.shape))
        exchange = StateExchange(
            old=values,
            new=new_values,
            moved=moves.moved,
            format=member.optimizer._storage.format_of(new_values),
            by_entry=self.by_entry,
            seeded=seeded,
            betas=member.group["betas"],
        )
        return exchange.of(member.state)

    def _put(self, old: Any, new: Any) -> None:
        """Put the new tensors in place. Does no harm again."""
        holder, state, values = self.holder, self.holder._sparse_ft_state, self.values
        weight = holder._weight()
        if new.matrix_values is not None:
            ops.scatter_selected_(holder._matrix(), new.matrix_values, *old.layout)
        state.shown = state.suspected = None
        state.selection, state.factor, state.left = self.selection, new.factor, new.left
        if new.origin is not None:
            state.origin = new.origin
        if values.shape == new.values.shape:
            values.copy_(new.values)
            values.grad = None
            holder._link(values)
        else:
            values = nn.Parameter(new.values, requires_grad=values.requires_grad)
            holder.register_parameter("values", values)
        if self.member is not None:
            self.member.exchange(values, new.state.state)
        # A backward that is pending would give gradients of the old entries.
        torch.autograd.graph.increment_version(weight)
        holder._mark_shown()
        self._record()

    def _record(self) -> None:
        """The plan of the model says what trains."""
        record: Any = record_of(self.model)  # there is one: the model is converted
        plan = record.plan | {self.name: self.selection}
        carry(self.model, plan)
        self.model.__dict__[RECORD] = record._replace(plan=plan)
