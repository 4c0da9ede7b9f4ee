"""Capture: the two factors of a linear layer's weight gradient, input and output gradient, in the
place of the gradient. It is then made strip by strip, or example by example, and never whole.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..lean_modules.attach import lean_forward_of
from ..nn.linear import Adopted, is_conv1d
from .untouched import Untouched

Sink = Callable[[str, torch.Tensor, torch.Tensor], None]  # name, input, grad_output


def layers_of(model: nn.Module, weights: dict[str, nn.Parameter]) -> dict[str, nn.Module]:
    """{name: module} of the weights that one linear layer holds, and no other module."""
    wanted = {id(weight): name for name, weight in weights.items()}
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if id(parameter) in wanted:
                holders.setdefault(id(parameter), []).append(module)
    found = {}
    for key, modules in holders.items():
        only = modules[0]
        is_weight = id(only._parameters.get("weight")) == key  # as it is stored
        if len(modules) == 1 and is_weight and _is_linear(only) and _is_own_product(only):
            found[wanted[key]] = only
    return found


def _is_linear(module: nn.Module) -> bool:
    kind = type(module)
    return kind is nn.Linear or is_conv1d(kind) or isinstance(module, Adopted)


def _is_own_product(module: nn.Module) -> bool:
    """Whether nobody has given the module another forward, but for a lean model a selective one."""
    if "forward" not in vars(module):
        return True
    return isinstance(module, Adopted) and lean_forward_of(module, "forward") is not None


def capture(layers: dict[str, nn.Module], sink: Sink) -> None:
    """Have every layer's backward call `sink` instead of making the gradient of its weight.

    The forward of the module object is replaced; whoever calls this puts its attributes back
    (`untouched` does).
    """
    for name, module in layers.items():
        module.forward = _Captured(name, module, sink)


def refuse_strays(
    saved: Untouched, weights: dict[str, nn.Parameter], notice: Callable[[str], object]
) -> None:
    """Have `notice` told of each of the weights that gets a gradient by itself, although its layer
    is captured: it is read by somebody else, and the two factors are not all of its gradient.
    """
    for name, parameter in saved.stand_ins(weights).items():
        saved.also(parameter.register_post_accumulate_grad_hook(_Stray(name, notice)).remove)


class _Stray:
    """A hook of a weight whose own layer sends it no gradient."""

    def __init__(self, name: str, notice: Callable[[str], object]):
        self.name, self.notice = name, notice

    def __call__(self, parameter: nn.Parameter) -> None:
        parameter.grad = None
        self.notice(self.name)


class _Captured:
    """A forward in the place of a linear layer's own."""

    def __init__(self, name: str, module: nn.Module, sink: Sink):
        self.name, self.sink, self.module = name, sink, module
        self.own_forward = module.forward
        # The output depends on something.
        self.anchor = torch.empty(0, requires_grad=True, device="cpu")

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        bias = self.module.bias
        return _Product.apply(input, self.anchor if bias is None else bias, self.anchor, self)


class _Product(torch.autograd.Function):
    """The layer's own forward, and of its backward the gradients of input and bias."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, bias: torch.Tensor, anchor: torch.Tensor, captured: _Captured
    ) -> torch.Tensor:
        ctx.save_for_backward(input)
        ctx.captured = captured
        return captured.own_forward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple:
        (input,) = ctx.saved_tensors
        captured = ctx.captured
        module = captured.module
        captured.sink(captured.name, input.detach(), grad_output)
        grad_input = grad_bias = None
        if ctx.needs_input_grad[0]:
            weight = module.weight.detach().to(grad_output.dtype)
            is_linear = isinstance(module, nn.Linear)
            grad_input = grad_output @ (weight if is_linear else weight.T)
            grad_input = grad_input.to(input.dtype)
        if ctx.needs_input_grad[1] and module.bias is not None:
            others = tuple(range(grad_output.dim() - 1))
            grad_bias = grad_output.sum(others) if others else grad_output
            grad_bias = grad_bias.to(module.bias.dtype)
        return grad_input, grad_bias, None, None


class Factors:
    """A weight's gradient as a product: left [tokens, rows]ᵀ · right [tokens, columns].

    examples: over how many of them, of as many tokens each; None for tokens of all.
    """

    def __init__(self, module: nn.Module, input: torch.Tensor, grad_output: torch.Tensor):
        input = input.to(grad_output.dtype)
        is_linear = isinstance(module, nn.Linear)
        self._left, self._right = (grad_output, input) if is_linear else (input, grad_output)

    def of_batch(self) -> "Product":
        """The gradient of all examples together."""
        left, right = self._left, self._right
        return Product(left.reshape(-1, left.size(-1)), right.reshape(-1, right.size(-1)))

    def of_example(self, number: int, weight: float) -> "Product":
        """The gradient of an example that counts `weight` in the loss of all."""
        left, right = self._left[number], self._right[number]
        left = left.reshape(-1, left.size(-1)) / weight
        return Product(left, right.reshape(-1, right.size(-1)))

    @property
    def first_size(self) -> int:
        """How many parts the first dimension has: examples, where they lie there."""
        return self._left.size(0) if self._left.dim() > 1 else 1


class Product:
    """left [tokens, rows]ᵀ · right [tokens, columns], some rows of it at a time."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor):
        self._left, self._right = left, right

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """[end - begin, columns]."""
        return self._left[:, begin:end].T @ self._right

    def fingerprint(self, probe: "Probe") -> torch.Tensor:
        """See `Probe`."""
        down = probe.times(self._left, probe.down)
        across = probe.times(self._right, probe.across)
        return (down.T @ across).reshape(-1).double().cpu()


class NoProduct(Exception):
    """The gradient of a captured layer is more than one product. name: of its weight."""

    def __init__(self, name: str):
        super().__init__(name)
        self.name = name


class Probe:
    """Tells gradients apart by a few numbers: downᵀ · G · across, for fixed random vectors."""

    COUNT = 3

    def __init__(self, shape: tuple[int, int]):
        generator = torch.Generator().manual_seed(shape[0] * 1_000_003 + shape[1])
        rows, columns = shape
        kind: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
        self.down = torch.randn(rows, self.COUNT, **kind)
        self.across = torch.randn(columns, self.COUNT, **kind)

    @staticmethod
    def times(matrix: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """matrix [n, size] · vectors [size, COUNT], in fp32 at least."""
        wide = torch.promote_types(matrix.dtype, torch.float32)
        return matrix.to(wide) @ vectors.to(matrix.device, wide)

    def of(self, gradient: torch.Tensor) -> torch.Tensor:
        """fp64 [COUNT²] of a gradient [rows, columns]."""
        across = self.times(gradient, self.across)
        down = self.down.to(across)
        return (down.T @ across).reshape(-1).double().cpu()
