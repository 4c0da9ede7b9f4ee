"""How a model looks: all that running it may change."""

import random

import numpy
import torch


def random_states():
    name, key, *rest = numpy.random.get_state()
    return random.getstate(), (name, key.tolist(), *rest), torch.get_rng_state().tolist()


def looks(model):
    """All that a run may change; objects by identity, tensors by identity and numbers."""
    parameters = [
        (
            name,
            id(p),
            p.data_ptr(),
            p.tolist(),
            p.requires_grad,
            id(p.grad),
            p.grad is not None and p.grad.tolist(),
        )
        for name, p in model.named_parameters()
    ]
    buffers = [(name, id(b), b.data_ptr(), b.tolist()) for name, b in model.named_buffers()]
    modules = [(name, id(m), m.training, _attributes(m)) for name, m in model.named_modules()]
    return parameters, buffers, modules, random_states(), torch.is_grad_enabled()


def _attributes(module):
    return {
        name: [*map(id, value)] if isinstance(value, (list, dict, set)) else id(value)
        for name, value in vars(module).items()
    }


def assert_left_alone(model, before):
    for what, was, now in zip(
        ("parameters", "buffers", "modules", "random", "grad mode"), before, looks(model)
    ):
        assert was == now, what
