"""Selective modules whose weight tensor parallel has cut: a DTensor, of which each process holds a
part (`parallelize_module`, then `sft.convert`).

`values` are whole in each process. It makes the gradient of, and writes, those of them that lie in
its part of the weight (`parallel.portion`); nothing of the weight's size travels or is made.
"""

import weakref
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from .. import ops
from ..parallel.cut_shards import CutShards, gather_values, portion_here
from ..parallel.dtensors import is_sharded_tensor
from ..parallel.portion import Portion, rectangle_of
from ..parallel.products import local, parallel_alias, parallel_embedding, parallel_linear
from ..selection import Selection
from .alias import SelectedParameter
from .embedding import SelectiveEmbedding
from .foreign import is_partitioned
from .linear import Adopted, SelectiveLinear
from .selected import Selected
from .state import NAME, Held, Stamp, State


class TensorParallel(Selected):
    """Mixin: `Selected`, of a weight that is a DTensor."""

    has_cache = False  # of all values, for an optimiser to write
    no_cache = (
        "was cut by tensor parallel before it was converted, so that no process holds it whole",
        "sft.revert(model) first; full_tensor() then gives its weights",
    )

    def _weight_here(self) -> torch.Tensor:
        """What this process holds of the weight; a write to it is one to the weight."""
        weight: Any = self._weight()
        with torch.no_grad():
            return weight.to_local()

    def _values_here(self) -> torch.Tensor:
        """All values."""
        values: Any = self._parameters["values"]
        with torch.no_grad():
            return values.to_local()

    def _portion(self) -> Portion:
        """What of the selection lies in this process's part of the weight."""
        state = self._sparse_ft_state
        weight: Any = self._weight()
        key = weight.device_mesh, weight.placements
        found = state.portions.get(key)
        if found is None:
            found = portion_here(state.selection, state.matrix_shape, weight)
            state.portions[key] = found
        return found

    def _part(self) -> Any:
        """What backward needs of the input, for those entries; None where there are none."""
        portion, dim = self._portion(), type(self)._input_dim
        if portion.selection is None or dim is None:
            return None
        return portion.selection.restrict(dim, portion.shape[dim])

    def _select(
        self,
        selection: Selection,
        shape: tuple[int, int],
        values_dtype: torch.dtype | None = None,
        origin: bool = False,
    ) -> None:
        if origin:
            raise ValueError(
                f"{self._sparse_ft_state.label}: origin=True is not supported for a weight that"
                " tensor parallel cuts; convert without it"
            )
        weight: Any = self._weight()
        self._sparse_ft_state.cut_over = weight.device_mesh
        super()._select(selection, shape, values_dtype)

    def _gather(
        self, selection: Selection, shape: tuple[int, int], dtype: torch.dtype
    ) -> torch.Tensor:
        weight: Any = self._weight()
        whole = gather_values(selection, shape, weight, dtype)
        wanted = [Replicate() for _ in weight.placements]
        return DTensor.from_local(whole, weight.device_mesh, wanted, run_check=False)

    def _shown(self, dtype: torch.dtype) -> torch.Tensor:
        state = self._sparse_ft_state
        return self._gather(state.selection, state.matrix_shape, dtype)

    def _alias(self) -> torch.Tensor:
        return parallel_alias(self._weight(), self._parameters["values"], self._portion())

    def _link(self, values: nn.Parameter) -> None:
        self._sparse_ft_state.portions.clear()
        super()._link(values)

    def _matrix(self) -> torch.Tensor:
        raise RuntimeError(
            f"{self._sparse_ft_state.label}: tensor parallel has cut its weight, which is not"
            " supported here; read weight.full_tensor(), or sft.revert(model) first"
        )

    def _stamp(self) -> Stamp:
        values, weight = self._parameters["values"], self._weight()
        values_here, weight_here = self._values_here(), self._weight_here()
        # Writes to a DTensor and to what it holds count apart.
        return Stamp(
            values._version + values_here._version, values_here.data_ptr(), values.dtype,
            weight._version + weight_here._version, weight_here.data_ptr(), weight.dtype,
            self._sparse_ft_state.tracked._version,
        )  # fmt: skip

    def _mark_shown(self) -> None:
        state, stamp = self._sparse_ft_state, self._stamp()
        storage = weakref.ref(self._weight_here().untyped_storage())
        addresses = stamp.values_address, stamp.weight_address
        state.held = Held(addresses, storage, self._values_here().detach(), _nobody)
        state.shown, state.suspected = stamp, None

    def _is_shown(self, state: State) -> bool:
        return (
            state.shown is not None
            and state.held.storage() is not None
            and self._stamp() == state.shown
        )

    def _write(self, quietly: bool = False) -> None:
        portion = self._portion()
        if portion.selection is None:
            return
        here = local(self._weight()) if quietly else self._weight_here()
        with torch.no_grad():
            values = portion.take(self._values_here())
            matrix = here.view(portion.shape)
            ops.scatter_selected_(matrix, values, portion.selection.layout)

    def _warn_if_overwritten(self) -> None:
        portion = self._portion()
        if portion.selection is not None:
            matrix = local(self._weight()).view(portion.shape)
            values = portion.take(self._values_here())
            self._warn_if_other(matrix, values, portion.selection)

    def _is_split(self) -> bool:
        """Whether the parameters that are in place are FSDP2's, split over more ranks than tensor
        parallel has cut them for.
        """
        weight: Any = self._weight_or_none()
        return is_sharded_tensor(weight) and weight.device_mesh != self._sparse_ft_state.cut_over

    def _takes_shards(self) -> bool:
        state = self._sparse_ft_state
        if not self._is_split():
            return state.shards is not None  # gathered, or never split
        known = state.shards
        values: Any = self._parameters["values"]
        weight: Any = self._weight()
        if known is None or values is not known.values or weight is not known.weight:
            selection = state.selection.to(values.device)
            shape = state.matrix_shape
            state.shards = CutShards.of(state.label, weight, values, selection, shape)
            state.shown = state.suspected = state.held = None
            self._link(values)
        return True

    def sync(self, force: bool = False) -> None:
        if torch.is_grad_enabled() or not self._shows_part():
            super().sync(force)

    def _shows_part(self) -> bool:
        """Whether this process's part stands in the weight's place, as transformers puts it there
        for the length of a forward without gradients. It shows the values, as the weight does.
        """
        weight, shown = self._weight_or_none(), self._sparse_ft_state.shown
        if weight is None or shown is None or is_sharded_tensor(weight):
            return False
        return weight.data_ptr() == shown.weight_address

    def sync_to_run(self) -> None:
        self.sync()
        if self._is_split():
            raise RuntimeError(
                f"{self._sparse_ft_state.label}: its forward runs on what fully_shard has split:"
                " call it through the module that fully_shard wraps, which gathers it"
            )

    def after_step(self, written: bool, reached: bool) -> None:
        super().after_step(written, reached)
        state = self._sparse_ft_state
        if written and state.shards is None:  # by who writes no weights that are cut
            state.shown = state.suspected = None
            torch.autograd.graph.increment_version(self._weight())

    def _check_unmanaged(self, state: State) -> None:
        values, weight = self._parameters.get("values"), self._weight_or_none()
        if values is None or weight is None:
            return
        if is_partitioned(values) or is_partitioned(weight):
            raise RuntimeError(
                f"{state.label}: taken over by DeepSpeed's ZeRO-3, and tensor parallel has cut its"
                " weight before; use FSDP2 (fully_shard) beside tensor parallel"
            )
        if not (is_sharded_tensor(values) and is_sharded_tensor(weight)):
            raise RuntimeError(
                f"{state.label}: its weight or values are no DTensor any more; sft.revert(model),"
                " then convert again"
            )


_eager = torch.compiler.disable(
    reason="a selection of a weight that tensor parallel has cut runs outside of compiled graphs"
)


def _nobody() -> None:
    """In the place of a weak reference to a weight: torch casts a DTensor by swapping it, which one
    that is referred to weakly refuses.
    """


def check_cut(label: str, weight: Any, shape: tuple[int, int]) -> None:
    """Raise ValueError where the parts of a DTensor are no rectangles of its matrix, or have no
    numbers of their own.
    """
    if any(at.is_partial() for at in weight.placements):
        raise ValueError(
            f"{label}: a DTensor in the placements {weight.placements}, a sum that was not taken;"
            " redistribute it first"
        )
    if any(type(at) not in (Shard, Replicate) for at in weight.placements):
        raise ValueError(
            f"{label}: a DTensor in the placements {weight.placements}, so that a process has"
            " pieces that do not follow each other; train it whole ('all') or leave it out"
        )
    chunks = weight.__create_chunk_list__()
    try:
        rectangle_of(weight.shape, chunks[0].offsets, chunks[0].sizes, shape)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


class ParallelLinear(TensorParallel, Adopted, nn.Linear):
    """`SelectiveLinear` of a weight that tensor parallel has cut by rows (`ColwiseParallel`) or
    columns (`RowwiseParallel`), or keeps whole.
    """

    _input_dim = 1

    @_eager
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        p, state = self._parameters, self.__dict__.get(NAME)
        if state is None:
            return type(self).forward(self, input)  # see SelectiveLinear
        self.sync_to_run()
        bias: Any = self.bias
        return parallel_linear(input, p["weight"], p["values"], bias, self._portion(), self._part())


class ParallelEmbedding(TensorParallel, Adopted, nn.Embedding):
    """`SelectiveEmbedding` of a table that tensor parallel has cut."""

    @_eager
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        p, state = self._parameters, self.__dict__.get(NAME)
        if state is None:
            return type(self).forward(self, input)  # see SelectiveLinear
        self.sync_to_run()
        portion = self._portion()
        index = state.selection.index[portion.among[0]]
        return parallel_embedding(input, p["weight"], p["values"], portion, index, self.padding_idx)


class ParallelParameter(TensorParallel, SelectedParameter):
    """`SelectedParameter` of a DTensor."""

    def before_forward(self, module: nn.Module, inputs: tuple) -> None:
        if torch.is_grad_enabled():
            super().before_forward(module, inputs)
        else:
            self.sync_to_run()  # nothing is put in its place, which may be this process's part


# In the place of a selective class, where the weight is a DTensor.
CLASSES: dict[Any, Any] = {
    SelectiveLinear: ParallelLinear,
    SelectiveEmbedding: ParallelEmbedding,
    SelectedParameter: ParallelParameter,
}
