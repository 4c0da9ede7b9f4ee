"""Does a lean forward do what a module's own does?

Both run on a stand-in: an object of the same class, a few numbers in it. The user's weights are not
read, hooks do not run, nothing is drawn from the random state, and the module stays as it was. Two
forwards behave alike when values, dtypes, gradients, calls of children and errors are the same in
every case.
"""

import contextlib
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .._torch import is_hooked
from ..annotations import AnyModule
from .attach import ATTRIBUTES, attached, lean_forward_of

INTERNAL = frozenset(nn.Module().__dict__)  # what every module has
SIMPLE = bool, int, float, str, type(None), torch.dtype, torch.device, type
ROUNDINGS = 4  # roundings of a 16-bit dtype that may lie between two ways of writing one formula
GRADIENT = 1e-4  # of the largest one


class Undecided(Exception):
    """A probe that cannot tell, and why."""


class Case(NamedTuple):
    """One call. module: a stand-in.

    gradients: whether those of the input and of the parameters are compared, too. elementwise: a
    rounding error is measured by the larger of the element's input and output, not by the largest
    of its row.
    """

    module: nn.Module
    input: torch.Tensor
    gradients: bool = False
    elementwise: bool = False


# Of a module: None where it is of another kind, otherwise the calls to try. Raises Undecided.
Cases = Callable[[nn.Module], list[Case] | None]


class Child:
    """Stands for a child module: counts its calls, which no hook sees, global ones included."""

    def __init__(self, module: nn.Module) -> None:
        self.__dict__.update(attached(module))
        self._module, self._calls = module, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._calls += 1
        return type(self._module).forward(self._module, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)


class Wave(nn.Module):
    """A child that is no product and no activation: a dropout, or one of any kind."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.slope + 0.25


def pattern(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Fixed numbers between -1.3 and 1.3, on the CPU."""
    count = torch.Size(shape).numel()
    return torch.arange(count, device="cpu").mul(0.7).add(0.3).sin().mul(1.3).view(shape).to(dtype)


def linear(inputs: int, outputs: int, dtype: torch.dtype, first: int) -> Child:
    """A small linear layer; another one for another `first`."""
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    numbers = pattern(first + 1, outputs, inputs)[first]
    layer.weight = nn.Parameter(numbers.to(dtype))
    return Child(layer)


def stand_in(
    module: nn.Module,
    parameters: dict[str, torch.Tensor] | None = None,
    children: dict[str, Child] | None = None,
    training: bool = True,
    **attributes: Any,
) -> nn.Module:
    """An object of the module's class and attributes, with these parameters, children, no hooks.

    attributes: put in the place of the module's own. Raises Undecided for what such an object
    cannot stand for.
    """
    own = nn.Module()
    given = attached(module)
    for name, value in module.__dict__.items():
        if name in INTERNAL or name in given or name in ATTRIBUTES:
            continue
        if isinstance(value, types.MethodType) and value.__self__ is module:
            raise Undecided(f"it has a method {name} of its own")
        own.__dict__[name] = value.copy() if type(value) in (list, dict, set) else value
    own.__dict__.update(attributes, training=training)
    parameters, children = parameters or {}, children or {}
    own.__dict__["_parameters"] = {name: nn.Parameter(value) for name, value in parameters.items()}
    own.__dict__["_modules"] = dict(children)
    twin = object.__new__(type(module))
    twin.__dict__.update(own.__dict__)
    return twin


def key(module: nn.Module) -> tuple:
    """What the behaviour of a module may depend on, without its numbers; while it is unchanged."""
    stored = dict.items(module._parameters)
    parameters = tuple((name, None if p is None or is_lazy(p) else p.shape) for name, p in stored)
    children = tuple((name, _one_key(child)) for name, child in module.named_children())
    return _one_key(module), parameters, tuple(module._buffers), children


def _one_key(module: nn.Module) -> tuple:
    forward = lean_forward_of(module)
    hidden = INTERNAL if forward is None else INTERNAL | attached(module).keys()
    own = [(name, value) for name, value in module.__dict__.items() if name not in hidden]
    attributes = tuple((name, _token(value)) for name, value in own)
    return type(module), forward, attributes, is_hooked(module)


def _token(value: Any) -> Any:
    if isinstance(value, SIMPLE):
        return type(value), value
    return tuple(map(_token, value)) if isinstance(value, tuple) else id(value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """As on a fresh process: gradients on, no autocast, the CPU; the random state is put back."""
    before = torch.default_generator.get_state()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            torch.default_generator.set_state(before)


class Outcome(NamedTuple):
    """Of one call: output, or class of the error.

    Gradients; writes to the input; calls of children.

    activations: calls of the children that are lean themselves, whose work a lean forward may do.
    """

    output: torch.Tensor | type[Exception]
    gradients: tuple
    writes: int
    calls: tuple
    activations: tuple = ()


def outcome(forward: Callable, case: Case) -> Outcome:
    """What `forward(module, input)` does. Raises Undecided where it changes the module."""
    module: AnyModule = case.module
    before = {name: (value, _copied(value)) for name, value in module.__dict__.items()}
    children = [child for child in module._modules.values() if isinstance(child, Child)]
    for child in children:
        child.__dict__["_calls"] = 0
    torch.default_generator.manual_seed(0)
    leaf = case.input.detach().clone().requires_grad_(case.gradients)
    given = leaf * 1 if case.gradients else leaf
    version = given._version
    with contextlib.nullcontext() if case.gradients else torch.no_grad():
        try:
            output = forward(module, given)
        except Exception as error:
            return Outcome(type(error), (), 0, ())
    if not _unchanged(module, before):
        raise Undecided("its forward changes the module")
    if type(output) is not torch.Tensor:
        raise Undecided(f"its forward returns a {type(output).__name__}")
    gradients: tuple = ()
    if case.gradients and output.requires_grad:
        owners = module, *children
        weights = [p for owner in owners for p in owner._parameters.values() if p is not None]
        leaves = [leaf, *weights]
        grad_output = pattern(*output.shape)
        gradients = torch.autograd.grad(output, leaves, grad_output, allow_unused=True)
    calls = tuple(child._calls for child in children if "forward" not in child.__dict__)
    activations = tuple(child._calls for child in children if "forward" in child.__dict__)
    return Outcome(output.detach(), gradients, given._version - version, calls, activations)


def _copied(value: Any) -> Any:
    return value.copy() if type(value) in (list, dict, set) else None


def _unchanged(module: nn.Module, before: dict) -> bool:
    now = module.__dict__
    if now.keys() != before.keys():
        return False
    for name, (value, old) in before.items():
        if now[name] is not value or (old is not None and value != old):
            return False
    return True


def alike(want: Outcome, got: Outcome, case: Case) -> bool:
    """Whether two outcomes of one case are the same up to rounding."""
    if isinstance(want.output, type) or isinstance(got.output, type):
        return want.output is got.output
    if want.output.dtype != got.output.dtype or want.output.shape != got.output.shape:
        return False
    if want.writes != got.writes or want.calls != got.calls:
        return False
    if any(number != 1 for number in want.activations):
        return False
    if not _close(want.output, got.output, case):
        return False
    if len(want.gradients) != len(got.gradients):
        return False
    return all(_close_gradients(a, b) for a, b in zip(want.gradients, got.gradients, strict=True))


def _close(want: torch.Tensor, got: torch.Tensor, case: Case) -> bool:
    weights = [p for p in case.module._parameters.values() if p is not None]
    dtypes = {want.dtype, case.input.dtype, *(weight.dtype for weight in weights)}
    coarsest = max(torch.finfo(dtype).eps for dtype in dtypes)
    relative = 1e-5 if coarsest <= torch.finfo(torch.float32).eps else ROUNDINGS * coarsest
    wide, other = want.double(), got.double()
    scale = wide.abs()
    if not case.elementwise:
        scale = scale.amax(-1, keepdim=True)
    elif case.input.shape == want.shape:
        scale = scale.maximum(case.input.double().abs())
    return bool(((wide - other).abs() <= relative * scale).all())


def _close_gradients(want: torch.Tensor | None, got: torch.Tensor | None) -> bool:
    if want is None or got is None:
        return want is got
    return want.dtype == got.dtype and bool((want - got).abs().max() <= GRADIENT * want.abs().max())


def behaves_like(own: Callable, forwards: list[Callable], cases: list[Case]) -> Callable | None:
    """The one of `forwards` that does what `own` does in all of `cases`; None for none.

    Raises Undecided, also where `own` fails in the first of them.
    """
    left = list(forwards)
    for number, case in enumerate(cases):
        want = outcome(own, case)
        if isinstance(want.output, type) and number == 0:
            raise Undecided(f"on a small stand-in it raises {want.output.__name__}")
        left = [forward for forward in left if alike(want, outcome(forward, case), case)]
        if not left:
            return None
    return left[0]
