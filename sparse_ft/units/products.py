"""Products: calls of torch's functions that bring features and a parameter together.

Which dimension of the parameter meets the input's features, and which makes the output's, is told
by torch's own function and by the strides of what it was given: a view of the parameter. No name
of a module or a model is looked at.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

EVERY = -1  # as `expert`: the product runs through all of them alike

LINEAR = (F.linear,)
MATMUL = (
    torch.mm,
    torch.matmul,
    torch.bmm,
    torch.Tensor.mm,
    torch.Tensor.matmul,
    torch.Tensor.bmm,
    torch.Tensor.__matmul__,
)
ADDMM = (torch.addmm, torch.Tensor.addmm)
CONVOLUTION = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
EMBEDDING = (F.embedding,)


class View(NamedTuple):
    """Where the entries of a tensor lie in a parameter.

    dimensions: for each of the tensor's, the parameter's. expert: the number in dimension 0 of
    a parameter of three dimensions that the tensor is a slice at; None: no slice.
    """

    parameter: str
    dimensions: tuple[int, ...]
    expert: int | None


class Product(NamedTuple):
    """One call.

    input: what brings the features; None for an embedding. takes, makes: the dimension of the
    parameter that meets the input's features, and that makes the output's. input_dim,
    output_dim: where these are in the input and the output. bias: name of the parameter that is
    added, if one is. is_convolution: whether it is one.
    """

    input: torch.Tensor | None
    parameter: str
    takes: int
    makes: int
    input_dim: int
    output_dim: int
    expert: int | None = None
    bias: str | None = None
    is_convolution: bool = False


class Parameters:
    """The parameters of a model, to be found again in what functions are given."""

    def __init__(self, named: Mapping[str, torch.Tensor]) -> None:
        self.named = dict(named)
        self._at: dict[int, list[str]] = {}
        for name, parameter in self.named.items():
            self._at.setdefault(_memory(parameter), []).append(name)

    def view(self, tensor: Any) -> View | None:
        """Of which parameter `tensor` is a view; None where it is of none, or a part of one."""
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            return None
        if tensor.layout is not torch.strided:
            return None
        for name in self._at.get(_memory(tensor), ()):
            found = _view(name, self.named[name], tensor)
            if found is not None:
                return found
        return None

    def name(self, tensor: Any) -> str | None:
        """The parameter that `tensor` is, whole."""
        found = self.view(tensor)
        if found is None or found.expert is not None:
            return None
        return found.parameter

    def product(self, function: Callable, args: tuple, kwargs: Mapping) -> Product | None:
        """The product that this call is; None where it is none, or not of these parameters."""
        if function in LINEAR:
            return self._linear(*_given(args, kwargs, "input", "weight", "bias"))
        if function in EMBEDDING:
            return self._embedding(*_given(args, kwargs, "input", "weight"))
        if function in CONVOLUTION or function in TRANSPOSED:
            return self._convolution(function, args, kwargs)
        if function in ADDMM:
            added, input, weight = _given(args, kwargs, "input", "mat1", "mat2")
            if kwargs.get("beta", 1) != 1 or kwargs.get("alpha", 1) != 1:
                return None
            return self._matmul(input, weight, added)
        if function in MATMUL:
            return self._matmul(args[0], args[1] if len(args) > 1 else None, None)
        return self._grouped(args, kwargs)

    def _linear(self, input: Any, weight: Any, bias: Any) -> Product | None:
        view = self.view(weight)
        if view is None or len(view.dimensions) != 2:
            return None
        makes, takes = view.dimensions
        return Product(input, view.parameter, takes, makes, -1, -1, view.expert, self.name(bias))

    def _matmul(self, input: Any, weight: Any, bias: Any) -> Product | None:
        view = self.view(weight)
        if view is None or self.view(input) is not None or len(view.dimensions) < 2:
            return None
        *batch, takes, makes = view.dimensions
        if len(batch) > 1 or (batch and batch != [0]):
            return None
        expert = EVERY if batch else view.expert
        return Product(input, view.parameter, takes, makes, -1, -1, expert, self.name(bias))

    def _grouped(self, args: tuple, kwargs: Mapping) -> Product | None:
        """A product of ranges of rows with one matrix each, whatever it is called: [tokens, in],
        [experts, in, out] and integers that say where ranges end.
        """
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        if len(given) != 3:
            return None
        input, weight, ends = given
        is_counted = ends.dim() == 1 and not ends.is_floating_point()
        if not is_counted or input.dim() != 2 or weight.dim() != 3:
            return None
        if len(ends) != len(weight) or not input.is_floating_point():
            return None
        if input.size(1) != weight.size(1):
            return None
        return self._matmul(input, weight, None)

    def _embedding(self, input: Any, weight: Any) -> Product | None:
        view = self.view(weight)
        if view is None or len(view.dimensions) != 2:
            return None
        rows, features = view.dimensions
        return Product(None, view.parameter, rows, features, -1, -1, view.expert)

    def _convolution(self, function: Callable, args: tuple, kwargs: Mapping) -> Product | None:
        """One that mixes its channels; of groups each by itself, gradients tell."""
        is_transposed = function in TRANSPOSED
        middle = ("stride", "padding")
        last = ("output_padding", "groups") if is_transposed else ("dilation", "groups")
        given = _given(args, kwargs, "input", "weight", "bias", *middle, *last)
        input, weight, bias, groups = *given[:3], given[-1]
        view = self.view(weight)
        if view is None or groups not in (None, 1):
            return None
        first, second = view.dimensions[:2]
        takes, makes = (first, second) if is_transposed else (second, first)
        channels = 1 - weight.dim()
        return Product(
            input,
            view.parameter,
            takes,
            makes,
            channels,
            channels,
            view.expert,
            self.name(bias),
            is_convolution=True,
        )


def _memory(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a tensor without memory
        return id(tensor)


def _view(name: str, parameter: torch.Tensor, tensor: torch.Tensor) -> View | None:
    """How `tensor` shows all of `parameter`, or one slice of its first of three dimensions."""
    offset = int(tensor.storage_offset() - parameter.storage_offset())
    expert: int | None = None
    left = list(range(parameter.dim()))
    if tensor.dim() == parameter.dim() - 1 == 2:
        expert, offset = divmod(offset, parameter.stride(0))
        left = left[1:]
        if not 0 <= expert < parameter.size(0):
            return None
    if offset != 0 or tensor.dim() != len(left):
        return None
    found = []
    for size, stride in zip(tensor.shape, tensor.stride()):
        for dimension in left:
            is_same = parameter.size(dimension) == size
            if is_same and (size == 1 or parameter.stride(dimension) == stride):
                left.remove(dimension)
                found.append(dimension)
                break
        else:
            return None
    return View(name, tuple(found), expert)


def _given(args: tuple, kwargs: Mapping, *names: str) -> tuple:
    """The arguments of these names, in order; None for those that were left out."""
    by_place = dict(zip(names, args))
    return tuple(by_place.get(name, kwargs.get(name)) for name in names)
