"""How a module is given a lean forward, and how that steps aside.

A lean forward is a bound method with the signature of the class's own, as if the class had been
written that way: trainers read the signature, accelerate wraps `forward.__func__`. A copy or a
pickle of a lean module runs its own.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from .._torch import is_compiling, is_forward_mode, is_transformed

ATTRIBUTES = ("forward", "_apply_gate")
# on a lean module: its `Given`. Without it a lean forward runs the class's own
_MARK = "_sparse_ft_forwards"


class Given:
    """The lean functions of one module, by the name under which each runs.

    Never changes: another one takes its place.

    In the state of a copy or a pickle it stands for the bound methods, which would lead back to the
    module they came from.
    """

    def __init__(self, module: nn.Module, forwards: dict[str, Callable]) -> None:
        self.module, self.forwards = module, forwards
        own = {name: getattr(type(module), name) for name in forwards}
        self.functions = {
            name: _function(own[name], name, forward) for name, forward in forwards.items()
        }

    def __reduce__(self) -> tuple:
        return object.__new__, (Given,), (self.module, self.forwards)

    def __setstate__(self, state: tuple[nn.Module, dict[str, Callable]]) -> None:
        """The module is made already, and gets the rest of its own state next, of which this is a
        part.
        """
        Given.__init__(self, *state)
        _give(self)


def attach(module: nn.Module, name: str, forward: Callable) -> None:
    """Let `module` run `forward(module, …)` under one of ATTRIBUTES."""
    given = module.__dict__.get(_MARK)
    # Not those of a copied module.
    others = given.forwards if given is not None and given.module is module else {}
    _give(Given(module, {**others, name: forward}))


def _give(given: Given) -> None:
    functions = given.functions | _COPYING
    methods = {
        name: types.MethodType(function, given.module) for name, function in functions.items()
    }
    given.module.__dict__.update({_MARK: given, **methods})  # one step: nothing comes in between


def _function(own: Callable, name: str, forward: Callable) -> Callable:
    """`_made`, once for each function; an object that is called may hold a model, which must not
    live as long as this process.
    """
    make = _made_once if isinstance(forward, types.FunctionType) else _made
    return make(own, name, forward)


def _made(own: Callable, name: str, forward: Callable) -> Callable:
    """`forward` with the name and signature of the class's `own`, which runs instead where
    `forward` does not serve.
    """

    signature = inspect.signature(own)
    takes_one = len(inspect.signature(forward).parameters) == 2
    only = set(list(signature.parameters)[:2])  # the module, and its input

    def lean(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The class's own once the module is no longer lean (whoever wrapped this may call it
        still), where torch.func (grad, vmap, jvp) or forward-mode derivatives need more, and for
        arguments that the lean forward does not take.
        """
        if _MARK not in module.__dict__ or (
            not is_compiling() and (is_transformed() or is_forward_mode())
        ):
            return getattr(type(module), name)(module, *args, **kwargs)
        if takes_one and (kwargs or len(args) != 1):
            given = signature.bind(module, *args, **kwargs).arguments
            if given.keys() != only:
                return own(module, *args, **kwargs)
            return forward(*given.values())
        return forward(module, *args, **kwargs)

    named: Any = lean
    named.__name__, named.__qualname__ = own.__name__, own.__qualname__
    named.__module__, named.__doc__ = own.__module__, own.__doc__
    named.__signature__ = (
        signature  # not __wrapped__: who unwraps a model would unwrap it past this
    )
    return named


_made_once = functools.lru_cache(maxsize=1024)(_made)


def _state(module: nn.Module) -> Any:
    """What copy and pickle take of a lean module: its state without methods that are bound to it.

    A deep copy, or what was unpickled, is lean again (`Given.__setstate__`); a shallow copy runs
    its class's own.
    """
    get = getattr(type(module), "__getstate__", None)  # object has one from Python 3.11 on
    state = module.__dict__.copy() if get is None else get(module)
    own, *slots = state if isinstance(state, tuple) else (state,)
    if not isinstance(own, dict):
        return state
    own = {name: value for name, value in own.items() if not _is_given(module, name, value)}
    return (own, *slots) if slots else own


def _replica(module: nn.Module) -> nn.Module:
    """nn.DataParallel's replica of a lean module, lean itself."""
    replica = type(module)._replicate_for_data_parallel(module)
    for name, forward in module.__dict__[_MARK].forwards.items():
        if lean_forward_of(module, name) is not None:
            attach(replica, name, forward)
    return replica


# Looked for on the instance first.
_COPYING = {"__getstate__": _state, "_replicate_for_data_parallel": _replica}


def _is_given(module: nn.Module, name: str, value: Any) -> bool:
    """Whether `value`, found under `name`, is a method that `attach` put there."""
    given = module.__dict__.get(_MARK)
    function = _COPYING.get(name) or (given.functions.get(name) if given is not None else None)
    return (
        function is not None and isinstance(value, types.MethodType) and value.__func__ is function
    )


def attached(module: nn.Module) -> dict:
    """{attribute: value} of all that `attach` put on this module.

    `detach` and an update with it give the same again.
    """
    found = {
        name: value for name, value in module.__dict__.items() if _is_given(module, name, value)
    }
    return found | {_MARK: module.__dict__[_MARK]} if _MARK in module.__dict__ else found


def lean_forward_of(module: nn.Module, *names: str) -> Callable | None:
    """The function that `attach` gave this module (under one of `names`; default: any), or None."""
    given = module.__dict__.get(_MARK)
    if given is None:
        return None
    for name in names or ATTRIBUTES:
        if name in given.forwards and _is_given(module, name, module.__dict__.get(name)):
            return given.forwards[name]
    return None


def detach(module: nn.Module) -> None:
    """Let a module run its class's own again, also where someone has wrapped the lean forward in
    the meantime.
    """
    for name in attached(module):
        if name != _MARK:
            del module.__dict__[name]
    module.__dict__.pop(_MARK, None)  # last: it tells which the others are
