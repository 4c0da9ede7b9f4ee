"""Watching one forward: every product's output is cut off from what it came of.

What lies between two products can then be asked by gradients, which end at the cuts.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from .products import Parameters, Product


class Cut(NamedTuple):
    """One product. input: what it was given, as it was then; None for an embedding.

    output: random numbers in the place of what it gave, from which what follows was computed.
    """

    product: Product
    input: torch.Tensor | None
    output: torch.Tensor


class Watch(TorchFunctionMode):
    """While it is entered, each product of `parameters` gives random numbers, a leaf of the graph.

    cuts: the products in order. Numbers come from a generator of its own. Random ones, because
    those of a model may be zero where nothing is amiss (a ReLU that is off, a fresh adapter).
    """

    def __init__(self, parameters: Parameters, seed: int) -> None:
        super().__init__()
        self.parameters = parameters
        self.cuts: list[Cut] = []
        self._generator = torch.Generator().manual_seed(seed)
        self._inputs: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        product = self.parameters.product(func, args, kwargs)
        if product is None:
            return func(*args, **kwargs)
        with torch.no_grad():
            output = func(*args, **kwargs)
        return self._cut(product, output)

    def _cut(self, product: Product, output: torch.Tensor) -> torch.Tensor:
        numbers = torch.randn(
            output.shape, generator=self._generator, dtype=torch.float32, device="cpu"
        )
        leaf = numbers.to(output.device, output.dtype).requires_grad_()
        given = None if product.input is None else self._as_it_is(product.input)
        self.cuts.append(Cut(product._replace(input=None), given, leaf))
        return leaf.clone()  # which may be written to

    def _as_it_is(self, input: torch.Tensor) -> torch.Tensor:
        """A copy, which is not written to later; one for all products of the same input."""
        key = id(input), input._version
        if key not in self._inputs:
            self._inputs[key] = input, input.clone()  # held: no other gets its id
        return self._inputs[key][1]


class _Buffer(NamedTuple):
    """A buffer as it was: the object, its numbers, and what tells that it was written to."""

    module: nn.Module
    name: str
    buffer: Any
    numbers: Any
    version: int


def _kept(module: nn.Module, name: str) -> _Buffer:
    buffer = module._buffers[name]
    if buffer is None or buffer.is_inference():
        return _Buffer(module, name, buffer, None, 0)
    return _Buffer(module, name, buffer, buffer.detach().clone(), buffer._version)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation, with gradients of small parameters, and as it was afterwards.

    Training modes, buffers, flags and the state of random numbers come back whatever happens.
    """
    training = [(module, module.training) for module in model.modules()]
    buffers = [_kept(module, name) for module in model.modules() for name in module._buffers]
    flags = [(p, p.requires_grad) for p in model.parameters() if p.is_floating_point()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(sorted(map(str, devices))))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # twice differentiable
        stack.callback(_put_back, training, buffers, flags)
        for module, _ in training:
            module.training = False
        for parameter, _ in flags:
            if parameter.is_leaf:
                parameter.requires_grad_(True)
        yield


def _put_back(
    training: list[tuple[nn.Module, bool]],
    buffers: list[_Buffer],
    flags: list[tuple[nn.Parameter, bool]],
) -> None:
    for parameter, flag in flags:
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)
    for module, name, buffer, numbers, version in buffers:
        if numbers is not None and buffer._version != version:
            buffer.data.copy_(numbers)
        if module._buffers.get(name) is not buffer:
            module._buffers[name] = buffer
    for module, was_training in training:
        module.training = was_training
