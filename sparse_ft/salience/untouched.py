"""untouched: a model may run, and is afterwards as it was; gradients are taken on what stands in
for its parameters.

A hook that steps an optimiser as soon as a gradient is there (`SelectiveAdamW(in_backward=True)`,
torch's own recipe) hangs on the parameter itself. A gradient of a stand-in, which has the
parameter's memory and none of its hooks, passes it by.
"""

import functools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy
import torch
from torch import nn

from .signs import Signs

T = TypeVar("T")
CONTAINERS = dict, OrderedDict, list, set


def untouched(model: nn.Module, act: Callable[["Untouched"], T]) -> T:
    """What `act(saved)` returns, with gradients on; all that running `model` may change is put
    back, after an exception too.

    That is: its parameters (flags, gradients, and which tensors they are), buffers and other
    tensors, attributes of its modules with the contents of their dicts, lists and sets, modes, and
    the random states of Python, numpy and torch.
    Memory: a copy of what is no parameter. Raises RuntimeError, at the end, where a parameter was
    written to.
    """
    saved = Untouched(model)
    # twice: Ctrl-C may come where the first `finally` begins, which a context manager has no answer
    # to
    try:
        try:
            with torch.enable_grad():
                result = act(saved)
        finally:
            saved.restore()
    finally:
        if not saved.is_restored:
            saved.restore()
    saved.check_parameters()
    return result


class Untouched:
    """What a model was when this was made."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._grad_mode = torch.is_grad_enabled()
        self._modules = [_Module(module) for module in model.modules()]
        self._parameters = [_Parameter(name, p) for name, p in model.named_parameters()]
        tensors = {id(t): t for module in model.modules() for t in _tensors_of(module)}
        rewritten = {id(p): p for module in model.modules() for p in _rewritten_by(module)}
        self._copies = [_Copy(tensor) for tensor in (tensors | rewritten).values()]
        self._rewritten = rewritten.keys()
        self._random = _random_states(model)
        self._ended = self.is_restored = False
        # What else to call, the last first.
        self._undo: list[Callable[[], object]] = []
        # {name: (parameter, what stands in for it)}
        self._stand_ins: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}

    def stand_ins(self, weights: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """{name: what collects the gradient of that weight}; no other parameter of the model needs
        one from now on.

        weights: {name: parameter of the model}. A stand-in takes the place of the weight in all
        attributes, dicts and lists of modules, and has its memory. A weight that no module lets be
        replaced (TorchScript's) collects its own gradient.
        """
        made = {id(p): _twin(p) for p in weights.values()}
        placed = set()
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for module in self._modules:
            placed |= module.replace(made)
        collecting = {}
        for name, parameter in weights.items():
            parameter.requires_grad_(True)
            if id(parameter) in placed:
                # A hook that stayed would keep this, and each gradient in it, as long as the model.
                self._undo.append(parameter.register_hook(self._refusal(name)).remove)
                self._stand_ins[name] = parameter, made[id(parameter)]
            collecting[name] = made[id(parameter)] if id(parameter) in placed else parameter
        return collecting

    def also(self, undo: Callable[[], object]) -> None:
        """Call `undo`, which must not mind to be called twice, when all is put back."""
        self._undo.append(undo)

    def take_magnitudes(self) -> None:
        """Let every parameter hold the sizes of its numbers, without their signs, from now on."""
        for parameter in self._model.parameters():
            if parameter.is_floating_point():
                self._undo.append(Signs(parameter).restore)
                parameter.data.abs_()

    def _refusal(self, name: str) -> Callable[[torch.Tensor], None]:
        """A hook against gradients that come to the weight itself, from a reference that someone
        has taken of it before.
        """

        def refuse(grad: torch.Tensor) -> None:
            if not self._ended:
                raise ValueError(
                    f"targets: the loss has {name!r} from somewhere else than its module's"
                    " attribute, and hooks of it would see the gradient; read it from the model in"
                    " the loss, or leave it out of targets="
                )

        return refuse

    def restore(self) -> None:
        """Put all of it back; to do so twice is as good as once."""
        self._ended = True
        for undo in reversed(self._undo):
            undo()
        parts: list[Any] = [*self._modules, *self._parameters, *self._copies]
        for part in parts:
            part.restore()
        for put_back, state in self._random:
            put_back(state)
        torch.set_grad_enabled(self._grad_mode)
        self.is_restored = True

    def check_parameters(self) -> None:
        """Raise RuntimeError that names a parameter whose memory was written to, of which there is
        no copy.
        """
        written = [
            p.name
            for p in self._parameters
            if p.written() and id(p.parameter) not in self._rewritten
        ]
        written += [
            name
            for name, (parameter, twin) in self._stand_ins.items()
            if twin._version
            and twin.data_ptr() == parameter.data_ptr()
            and id(parameter) not in self._rewritten
        ]
        if written:
            raise RuntimeError(
                f"loss: running the model wrote to its parameter {written[0]!r}, and no copy of it"
                " was kept to put back; scores of gradients need a model and loss that leave"
                " parameters alone (model.eval() may do)"
            )


class _Module:
    """The attributes of a module, and what is in those that are containers."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._training = module, module.training
        self._attributes = dict(vars(module))
        self._contents = {
            name: value.copy() for name, value in vars(module).items() if type(value) in CONTAINERS
        }

    def replace(self, made: dict[int, nn.Parameter]) -> set[int]:
        """Put made[id of a tensor] in the place of that tensor; returns the ids that were found."""
        found = set()
        attributes = vars(self._module)
        for container in (attributes, *(attributes[name] for name in self._contents)):
            if isinstance(container, set):
                continue
            items = container.items() if isinstance(container, dict) else enumerate(container)
            for key in [key for key, value in items if id(value) in made]:
                found.add(id(container[key]))
                container[key] = made[id(container[key])]
        return found

    def restore(self) -> None:
        attributes = vars(self._module)
        for name in attributes.keys() - self._attributes.keys():
            del attributes[name]
        for name, value in self._attributes.items():
            if name not in attributes or attributes[name] is not value:
                attributes[name] = value
        for name, content in self._contents.items():
            container = attributes[name]
            if _members(container) != _members(content):
                container.clear()
                (
                    container.extend(content)
                    if isinstance(container, list)
                    else container.update(content)
                )
        if self._module.training != self._training:  # TorchScript keeps it elsewhere
            self._module.training = self._training


def _members(container: Any) -> list:
    """What tells whether a container holds the same objects in the same places."""
    if isinstance(container, dict):
        return [(id(key), id(value)) for key, value in container.items()]
    return [id(value) for value in container]


class _Parameter:
    """A parameter's flag, gradient and memory."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name, self.parameter = name, parameter
        self._requires_grad, self._grad = parameter.requires_grad, parameter.grad
        self._memory, self._version = parameter.detach(), _version(parameter)

    def restore(self) -> None:
        _restore_memory(self.parameter, self._memory)
        if self.parameter.requires_grad != self._requires_grad:
            self.parameter.requires_grad_(self._requires_grad)
        if self.parameter.grad is not self._grad:
            self.parameter.grad = self._grad

    def written(self) -> bool:
        return (
            _version(self.parameter) != self._version
            and self.parameter.data_ptr() == self._memory.data_ptr()
        )


class _Copy:
    """A tensor's memory and the numbers in it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor, self._memory, self._numbers = tensor, tensor.detach(), tensor.detach().clone()

    def restore(self) -> None:
        with torch.no_grad():
            _restore_memory(self._tensor, self._memory)
            if not torch.equal(self._tensor, self._numbers):
                self._tensor.copy_(self._numbers)


def _restore_memory(tensor: torch.Tensor, memory: torch.Tensor) -> None:
    """After `tensor.data = other`."""
    if tensor.layout is torch.strided and tensor.data_ptr() != memory.data_ptr():
        tensor.data = memory


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _twin(parameter: nn.Parameter) -> nn.Parameter:
    """A leaf in the same memory, with the attributes that someone may have given the parameter, and
    no hook of its own.
    """
    twin = nn.Parameter(parameter.data)
    vars(twin).update(vars(parameter))
    return twin


def _tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Buffers, and tensors that are plain attributes.

    What was made in inference mode cannot be written to outside of it.
    """
    held = (*module.buffers(recurse=False), *vars(module).values())
    tensors = [t for t in held if isinstance(t, torch.Tensor) and not isinstance(t, nn.Parameter)]
    return [t for t in tensors if not t.requires_grad and not t.is_inference()]


def _rewritten_by(module: nn.Module) -> Iterable[nn.Parameter]:
    """Parameters that the module's own forward writes to: the rows of an embedding that are longer
    than max_norm.
    """
    return module.parameters(recurse=False) if getattr(module, "max_norm", None) is not None else ()


def _random_states(model: nn.Module) -> list[tuple[Callable, Any]]:
    """[(function that puts a random state back, the state)]: of Python, numpy, torch, and
    generators that modules hold.
    """
    states: list[tuple[Callable, Any]] = [
        (random.setstate, random.getstate()),
        (numpy.random.set_state, numpy.random.get_state()),
    ]
    states.append((torch.set_rng_state, torch.get_rng_state()))
    for kind in _accelerators(model):
        devices = torch.get_device_module(kind)
        for number in range(devices.device_count()):
            put_back = functools.partial(devices.set_rng_state, device=number)
            states.append((put_back, devices.get_rng_state(number)))
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Generator):
                states.append((value.set_state, value.get_state()))
            elif isinstance(value, random.Random):
                states.append((value.setstate, value.getstate()))
    return states


def _accelerators(model: nn.Module) -> list[str]:
    """The types of devices that may draw random numbers, besides the CPU."""
    kinds = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    if torch.cuda.is_available():
        kinds.add("cuda")
    return sorted(kinds - {"cpu", "meta"})
