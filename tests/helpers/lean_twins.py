"""A model and its lean twin: what both compute, bit for bit, and what both keep."""

import copy
import pickle

import torch
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft


def twins(model):
    """(a copy of `model` as torch runs it, `model` made lean)."""
    plain = copy.deepcopy(model)
    report = sft.lean(model)
    assert report.changed, "nothing became lean"
    return plain, model


def run(model, input, seed=1, **kwargs):
    """Output, gradient of the input, and gradients of what trains, by name.

    The output's gradient is random but fixed.
    """
    model.zero_grad()
    x = input.detach().requires_grad_()
    torch.manual_seed(seed)
    output = model(x * 1, **kwargs)
    torch.manual_seed(seed + 1)
    output.backward(torch.randn_like(output))
    return (
        output.detach(),
        x.grad,
        {name: p.grad for name, p in model.named_parameters() if p.requires_grad},
    )


def assert_same_bits(plain, lean, input, **kwargs):
    """Outputs and input gradients are equal.

    Gradients of parameters within the rounding of a sum.
    """
    wanted, got = run(plain, input, **kwargs), run(lean, input, **kwargs)
    for name, a, b in (("output", wanted[0], got[0]), ("gradient of the input", wanted[1], got[1])):
        assert a.dtype == b.dtype and a.stride() == b.stride(), name
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), (
            f"{name}: differs by {(a - b).abs().max()}"
        )
    assert wanted[2].keys() == got[2].keys()
    for name, a in wanted[2].items():
        torch.testing.assert_close(got[2][name], a, msg=lambda text, name=name: f"{name}: {text}")


def kept(model, input):
    """Bytes that autograd holds after a forward in which the input needs a gradient."""
    return sft.memory.ledger(model, input.detach().requires_grad_()).total


WAYS = {
    "reentrant checkpoint": lambda model: lambda x: checkpoint(model, x, use_reentrant=True),
    "checkpoint": lambda model: lambda x: checkpoint(model, x, use_reentrant=False),
    "save_on_cpu": lambda model: _under(lambda x: torch.autograd.graph.save_on_cpu(), model),
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "autocast": lambda model: _under(
        lambda x: torch.autocast(x.device.type, torch.bfloat16), model
    ),
}


def _under(context, model):
    def forward(x):
        with context(x):
            return model(x)

    return forward


def assert_same_every_way(plain, lean, input):
    """Checkpoints, copies, autocast and offloading change nothing (autocast: the same for both)."""
    for name, way in WAYS.items():
        results = []
        for model in (plain, lean):
            x = input.detach().requires_grad_()
            torch.manual_seed(1)
            output = way(model)(x)
            torch.manual_seed(2)
            output.backward(torch.randn_like(output))
            results.append((output.detach(), x.grad))
        for a, b in zip(*results, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b), (
                f"{name}: differs by {(a - b).abs().max()}"
            )
