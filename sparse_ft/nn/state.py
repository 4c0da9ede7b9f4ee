"""What a module with selected entries knows beside its parameters: one object, one private name.

A user's own attributes called `label`, `selection`, … stay as they were, and come back untouched
from `sft.revert`.
"""

import dataclasses
from typing import Any

import torch

NAME = "_sparse_ft_state"  # in the module's `__dict__`
RECORD = "_sparse_ft"  # on a converted model: how it was converted


@dataclasses.dataclass(slots=True)
class Stamp:
    """What values, weight and index were like when the weight last showed the values.

    Slots, read one by one: every forward compares them (`showing.is_shown`).
    """

    values_version: int
    values_address: int
    values_dtype: torch.dtype
    weight_version: int
    weight_address: int
    weight_dtype: torch.dtype
    index_version: int

    def same_values(self, other: "Stamp") -> bool:
        """Whether nothing has touched the values between two stamps."""
        return (
            self.values_version == other.values_version
            and self.values_address == other.values_address
            and self.values_dtype is other.values_dtype
        )


@dataclasses.dataclass(slots=True)
class Held:
    """Keeps two addresses meaningful: an address counts while nothing else can get it."""

    addresses: tuple[int, int]  # of values and weight
    storage: Any  # of the weight, weakly
    values: torch.Tensor
    weight: Any  # weakly


@dataclasses.dataclass(slots=True)
class Slide:
    """What `sft.restore` took away and what it put in its place, until it brings the first back.

    Both are shaped as what trains.
    """

    trained: torch.Tensor
    shown: torch.Tensor
    left: "Slide | None" = None  # the same of entries that have left the selection


@dataclasses.dataclass(slots=True)
class State:
    """label: the module's name in messages. selection: of the matrix `matrix_shape` (rows,
    columns).
    """

    label: str
    original: type | None = None  # the class that `restore` gives back to an adopted module
    # None until something is selected, and of `selection` again when it is no more: who asks
    # knows which it is.
    selection: Any = None
    matrix_shape: Any = None
    # of values, as asked for; None: fp32 or wider, whatever the weight becomes
    chosen_dtype: torch.dtype | None = None
    tied: tuple[str, ...] = ()  # other names of the weight: modules that read it, too (`tied`)
    origin: Any = None  # what the selected entries were at first, shaped as values; None: not kept
    left: Any = (
        None  # a `Left`: entries that trained before a reselection and keep what they learnt
    )
    slide: Slide | None = None  # None: values are what was trained
    # of `sft.scale_updates`: float32, shaped as values or as their first dimension
    factor: torch.Tensor | None = None
    unscaled: bool = False  # whether an optimiser was warned of that steps without the factor
    reported: bool = False  # whether a missing gradient was warned of
    resized: bool = (
        False  # whether the weight was given more or fewer rows, and no optimiser has stepped since
    )
    # What follows belongs to the objects that live now: a copy of the module finds its own.
    tracked: Any = None  # its version tells that the selection's index was edited
    part: tuple | None = None  # what backward needs of the input: `selection.restrict`
    cut_over: Any = None  # the mesh that tensor parallel has cut the weight over
    # of such a weight: a `Portion` for each way in which it is cut
    portions: dict = dataclasses.field(default_factory=dict)
    linked: torch.Tensor | None = None  # the values through which optimisers find the module
    shown: Stamp | None = None  # None: the weight may not show the values
    suspected: Stamp | None = (
        None  # `shown` until an optimiser stepped that may step a copy of the values
    )
    # what the weight held at the selected entries before the last `sync` wrote the values over it,
    # where somebody else had written it; None once the weight shows the values anew
    overwritten: torch.Tensor | None = None
    claim: Any = None  # the `steps.Stepper` that steps the values; None: nobody has yet
    held: Any = None  # a `Held`
    shards: Any = None  # a `parallel.shards.Shards`, where FSDP2 keeps weight and values

    def for_copy(self) -> "State":
        """What a copy or a pickle of the module takes along."""
        return dataclasses.replace(
            self,
            tracked=None,
            part=None,
            portions={},
            linked=None,
            shown=None,
            suspected=None,
            overwritten=None,
            claim=None,
            held=None,
            shards=None,
        )


class FromState:
    """A readable attribute of a module that comes from its `State`.

    No data descriptor: an attribute of the user's own wins.
    """

    def __set_name__(self, owner: type | None, name: str) -> None:
        self.name = name

    def __get__(self, module: Any, owner: type | None = None) -> Any:
        if module is None:
            return self
        state = module.__dict__.get(NAME)
        if state is None:
            raise AttributeError(f"{type(module).__name__} has no {self.name}: nothing is selected")
        return getattr(state, self.name)
