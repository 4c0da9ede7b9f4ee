"""Selected entries of a weight that several modules share: an embedding, and the output head that
is tied to it.

One module is the home of the selection and holds its `values`. The others read the same weight, and
their gradient reaches the same `values`: an `nn.Linear` becomes a `TiedLinear`, which makes that
gradient directly; others get an alias of the weight whenever they read it, whose dense gradient
exists for a moment. Nothing is added to a reader's state_dict.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .._torch import is_eager
from ..functional import alias, apply_product, selective_product
from .foreign import refuse_tracing, unswapped
from .reading import Parameters, ReadWeight, read, stored
from .selected import Selected
from .showing import is_shown

TIE = "_sparse_ft_tie"  # in the `__dict__` of a module that reads another one's selected weight


class Tie(NamedTuple):
    """home: who holds the values. label: the reader's parameter in messages. original: its class,
    where that was changed.
    """

    home: Selected
    label: str
    original: type | None

    def weight(self, own: Any) -> nn.Parameter:
        """The weight that both share. Raises RuntimeError where `own`, the reader's, is another one
        by now.
        """
        weight = self.home._weight_or_none()
        if weight is None or weight is not own or self.home._sparse_ft_state.selection is None:
            raise RuntimeError(
                f"{self.label}: it was tied to {self.home._sparse_ft_state.label!r}, whose selected"
                " entries train, and is not any more (resized, replaced?); sft.revert(model), then"
                " convert again"
            )
        return weight


class TiedReader:
    """What hands out the weight of a reader that is no `nn.Linear`: stands in for the module of a
    selection in `reading.read`.
    """

    def __init__(self, tie: Tie, module: nn.Module) -> None:
        self.tie, self.module = tie, module

    @property
    def _parameters(self) -> Any:
        return self.tie.home._parameters

    @property
    def _sparse_ft_state(self) -> Any:
        return self.tie.home._sparse_ft_state

    def sync(self) -> None:
        self.tie.home.sync()

    def _weight(self) -> nn.Parameter:
        return self.tie.weight(stored(self.module, "weight"))

    def _is_split(self) -> bool:
        return self.tie.home._is_split()

    def _alias(self) -> torch.Tensor:
        state = self._sparse_ft_state
        values = self._parameters["values"]
        return alias(self._weight(), values, state.selection.layout, state.matrix_shape)


class TiedLinear(nn.Linear):
    """`nn.Linear` that reads the weight of another module, some entries of which train there.

    Kept for backward: see `sparse_ft.functional.selective_linear`.
    """

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        tie = self.__dict__[TIE]
        tie.weight(self._parameters["weight"])
        return read(tie.home)

    @property
    def values(self) -> nn.Parameter:
        """The home's."""
        return self.__dict__[TIE].home._parameters["values"]

    @property
    def _sparse_ft_state(self) -> Any:
        return self.__dict__[TIE].home._sparse_ft_state

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        tie = self.__dict__.get(TIE)
        if tie is None:  # reverted since someone kept this method
            return type(self).forward(self, input)
        try:
            if input.is_nested:
                return F.linear(input, self.weight, self.bias)
        except ValueError:
            refuse_tracing(tie.label, (input,))
            raise
        home, weight = tie.home, tie.weight(self._parameters["weight"])
        values, state = home._parameters["values"], home._sparse_ft_state
        eager = is_eager()
        if not (eager and is_shown(state, values, weight)):
            home.sync_to_run()
        part = state.selection.restrict(1, weight.size(1))
        product = apply_product if eager and torch.is_grad_enabled() else selective_product
        return product(input, weight, values, self.bias, part, 1)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """torch's; who ties the weight again (`tie_weights`) gives what it read."""
        stored_one = param.parameter if type(param) is ReadWeight else None
        super().register_parameter(name, param if stored_one is None else stored_one)

    def requires_grad_(self, requires_grad: bool = True) -> "TiedLinear":
        """torch's, for all but the weight, which stays frozen."""
        if self.bias is not None:
            self.bias.requires_grad_(requires_grad)
        return self

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> "TiedLinear":
        with unswapped():
            super()._apply(fn, recurse)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self.__dict__[TIE].home.sync()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tied to {self._sparse_ft_state.label}"


def tie(module: nn.Module, home: Selected, label: str, keeps_class: bool) -> None:
    """Let `module` read the weight of `home`, which is its own, too; `untie` undoes it, also half
    done.

    keeps_class: somebody wrapped its forward, so it must go on reading the weight as it does.
    Raises ValueError for a module whose parameters someone else keeps.
    """
    if type(module) is nn.Linear and not keeps_class:
        module.__dict__[TIE] = Tie(home, label, type(module))
        module.__class__ = TiedLinear
        return
    parameters = Parameters.of(module)
    if parameters is None:
        raise ValueError(
            f"{label}: its parameters are kept by a {type(module._parameters).__name__}, so its"
            " gradient cannot be led to the selected entries of the weight that it shares; train"
            " it whole ('all') or leave it out"
        )
    module.__dict__[TIE] = Tie(home, label, None)
    reader: Any = TiedReader(module.__dict__[TIE], module)
    parameters.selected["weight"] = reader


def is_tied(module: nn.Module) -> bool:
    """Whether `tie` has begun on this module, and `untie` has not ended."""
    return TIE in module.__dict__


def home_of(module: nn.Module) -> Selected | None:
    """Who holds the values of the weight that a tied module reads."""
    known = module.__dict__.get(TIE)
    return None if known is None else known.home


def untie(module: Any) -> None:
    """Undo `tie`, as far as it got; called again, it does the rest."""
    original = module.__dict__[TIE].original
    if original is None:
        Parameters.remove(module, "weight")
    elif type(module) is TiedLinear:
        module.__class__ = original
    del module.__dict__[TIE]
