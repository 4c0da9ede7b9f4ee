"""How a module is given a lean forward, and how that steps aside."""

import functools

import torch
from torch.autograd import forward_ad

ATTRIBUTES = ("forward", "_apply_gate")


def attach(module, name, forward):
    """Let `module` run `forward(module, …)` under one of ATTRIBUTES."""
    module.__dict__[name] = functools.partial(run, forward, name, module)


def run(forward, name, module, *args, **kwargs):
    """A lean forward; the class's own where torch.func (grad, vmap, jvp) or forward-mode derivatives need more."""
    if not torch.compiler.is_compiling() and _is_transformed():
        return getattr(type(module), name)(module, *args, **kwargs)
    return forward(module, *args, **kwargs)


def _is_transformed():
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def attached(module):
    """{attribute: what `attach` put there} of one module."""
    return {name: given for name in ATTRIBUTES if _is_ours(given := module.__dict__.get(name))}


def _is_ours(given):
    return isinstance(given, functools.partial) and given.func is run


def lean_forward_of(module):
    """The function that `attach` gave this module, or None."""
    for given in attached(module).values():
        return given.args[0]
    return None


def detach(module):
    """Let a module run its class's own again."""
    for name in attached(module):
        del module.__dict__[name]


def direct(function):
    """`apply` of an autograd.Function without torch.func's preparation of its arguments: 4 µs that serve nothing here."""
    apply = super(torch.autograd.Function, function).apply

    def call(*args):
        if torch.compiler.is_compiling():
            return function.apply(*args)
        return apply(*args)

    return call
