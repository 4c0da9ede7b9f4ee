"""Reading a weight with selected entries: with gradients on, every reader trains its `values`.

A layer's own forward takes the stored parameter and makes `values.grad` itself. Whoever else reads
the weight (`F.linear(x, layer.weight)`, a tied head, a hook) gets a `ReadWeight`: the same memory,
whose dense gradient exists for a moment.
"""

from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import nn

from .._torch import as_plain_tensors, is_compiling, mark_as_parameter

if TYPE_CHECKING:
    from .selected import Selected


def stored(module: nn.Module, name: str) -> nn.Parameter:
    """The parameter `name` of `module` itself, whatever a reader gets.

    KeyError where there is none.
    """
    parameters: Any = module._parameters
    return (
        dict.__getitem__(parameters, name) if type(parameters) is Parameters else parameters[name]
    )


def read(selected: "Selected") -> torch.Tensor:
    """The weight of `selected`, showing its values; with gradients on, the reader's gradient goes
    to them.
    """
    selected.sync()
    weight, values = selected._weight(), selected._parameters["values"]
    if not (torch.is_grad_enabled() and values.requires_grad):
        return weight
    if selected._is_split():
        return weight  # FSDP2 asks for what it has put there
    handed = selected._alias()
    # traced, or without memory: their classes stay
    if is_compiling() or type(handed) is not torch.Tensor:
        return handed
    return ReadWeight.of(handed, weight, values)


# The attributes as torch.Tensor has them: descriptors, which its annotations do not tell.
_TENSOR: Any = torch.Tensor
_DATA, _GRAD, _REQUIRES_GRAD = _TENSOR.data, _TENSOR.grad, _TENSOR.requires_grad


class ReadWeight(torch.Tensor):
    """What a reader of a weight gets: not a leaf, and otherwise the stored parameter, of which it
    is an instance.

    `.data` is that of the parameter, also where it is assigned. `.requires_grad_(False)` freezes
    the selected entries. What `detach()` gives is of this class too, for `nn.Parameter(weight)`
    asks for that, and has neither `parameter` nor `values`: an ordinary tensor.
    """

    __torch_function__ = as_plain_tensors  # what is computed from it is of no class of ours
    parameter: nn.Parameter | None = None
    values: nn.Parameter | None = None  # type: ignore[assignment]  # a sparse tensor's method

    @classmethod
    def of(
        cls, handed: torch.Tensor, parameter: nn.Parameter, values: nn.Parameter
    ) -> "ReadWeight":
        """`handed`, an alias of `parameter` that leads to `values`."""
        read = handed.as_subclass(cls)
        read.parameter, read.values = parameter, values
        mark_as_parameter(read)
        return read

    def detach(self) -> torch.Tensor:
        return torch.Tensor.detach(self).as_subclass(type(self))

    @property
    def data(self) -> torch.Tensor:
        return _DATA.__get__(self) if self.parameter is None else self.parameter.data

    @data.setter
    def data(self, tensor: torch.Tensor) -> None:
        if self.parameter is None:
            _DATA.__set__(self, tensor)
        else:
            self.parameter.data = tensor

    @property
    def grad(self) -> torch.Tensor | None:
        """None, as the stored parameter's: `values` have it. The dense one for who called
        `retain_grad`.
        """
        if self.parameter is None or self.retains_grad:
            return _GRAD.__get__(self)
        return self.parameter.grad

    @grad.setter
    def grad(self, tensor: torch.Tensor | None) -> None:
        if self.parameter is None:
            _GRAD.__set__(self, tensor)
        else:
            self.parameter.grad = tensor

    @property
    def requires_grad(self) -> bool:
        return _REQUIRES_GRAD.__get__(self)

    @requires_grad.setter
    def requires_grad(self, flag: bool) -> None:
        self.requires_grad_(flag)

    def requires_grad_(self, requires_grad: bool = True) -> torch.Tensor:
        if self.values is None:
            return torch.Tensor.requires_grad_(self, requires_grad)
        self.values.requires_grad_(requires_grad)
        return self

    def _plain(self, data: torch.Tensor) -> torch.Tensor:
        """`data` as what this stands for: an ordinary parameter, or an ordinary tensor."""
        is_parameter = isinstance(self, nn.Parameter)
        return (
            nn.Parameter(data, self.requires_grad)
            if is_parameter
            else data.requires_grad_(self.requires_grad)
        )

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copied = self._plain(
            self.detach().as_subclass(torch.Tensor).clone(memory_format=torch.preserve_format)
        )
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return self._plain(torch.Tensor.detach(self).as_subclass(torch.Tensor)).__reduce_ex__(
            protocol
        )


class Parameters(dict):
    """A module's parameters, in the place of its `_parameters`: who reads a selected one gets a
    `ReadWeight`.

    Whoever goes through all of them (named_parameters, state_dict, `_apply`) gets what is stored.
    """

    selected: dict = {}  # name -> SelectedParameter; none yet while a copy is made

    @classmethod
    def of(cls, module: nn.Module) -> "Parameters | None":
        """Those of `module`, put in place if they are not yet; None where someone else's are."""
        parameters = module.__dict__["_parameters"]
        if type(parameters) is dict:
            parameters = module.__dict__["_parameters"] = cls(parameters)
            parameters.selected = {}
        return parameters if type(parameters) is cls else None

    @classmethod
    def remove(cls, module: nn.Module, name: str) -> None:
        """Hand out what is stored under `name` again; the last one leaves an ordinary
        dict behind.
        """
        parameters = module.__dict__["_parameters"]
        if type(parameters) is cls:
            parameters.selected.pop(name, None)
            if not parameters.selected:
                module.__dict__["_parameters"] = dict(parameters)

    def __getitem__(self, name: str) -> Any:
        selected = self.selected.get(name)
        if selected is None or dict.get(self, name) is None:
            return dict.__getitem__(self, name)
        return read(selected)

    def __setitem__(self, name: str, value: Any) -> None:
        """What is put back as it was read (`torch.func.functional_call`) is what was stored."""
        stored_one = value.parameter if type(value) is ReadWeight else None
        super().__setitem__(name, value if stored_one is None else stored_one)

    def __delitem__(self, name: str) -> None:
        """Refuse what weight_norm and spectral_norm begin with: they would go on from a copy that
        nobody trains.
        """
        selected = self.selected.get(name)
        if selected is not None and dict.get(self, name) is not None:
            raise RuntimeError(
                f"{selected._sparse_ft_state.label}: it has selected entries, so it cannot be"
                " deleted, normalised or parametrised; sft.revert(model) first"
            )
        super().__delitem__(name)
