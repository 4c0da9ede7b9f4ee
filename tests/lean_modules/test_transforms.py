"""Under torch.func, and in forward mode, a lean module is its class's own."""

import pytest
import torch
from helpers.lean_twins import twins
from torch import nn
from torch.autograd import forward_ad

transformers = pytest.importorskip("transformers")
from transformers.activations import NewGELUActivation, QuickGELUActivation  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm  # noqa: E402
from transformers.models.resnet.modeling_resnet import ResNetConvLayer  # noqa: E402

pytestmark = pytest.mark.usefixtures("made_on_device")

LLAMA = transformers.LlamaConfig(hidden_size=6, intermediate_size=8, num_attention_heads=2)
FLAT = {
    "RMSNorm": lambda: LlamaRMSNorm(6),
    "nn.RMSNorm": lambda: nn.RMSNorm(6),
    "LayerNorm": lambda: nn.LayerNorm(6),
    "MLP": lambda: LlamaMLP(LLAMA),
    "Linear": lambda: nn.Linear(6, 6),
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "tanh GELU": NewGELUActivation,
    "quick GELU": QuickGELUActivation,
    "Dropout": lambda: nn.Dropout(0.5),
}
PLANES = {
    "Conv2d": lambda: nn.Conv2d(3, 3, 2),
    "reflect": lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(3, 3, 2),
    "BatchNorm2d": lambda: nn.BatchNorm2d(3).eval(),
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "convolution, norm and ReLU": lambda: ResNetConvLayer(3, 3).eval(),
}
CASES = {name: (make, (4, 6)) for name, make in FLAT.items()} | {
    name: (make, (2, 3, 4, 4)) for name, make in PLANES.items()
}


@pytest.fixture(params=CASES)
def case(request):
    """(a frozen module, its lean twin, an input)."""
    make, shape = CASES[request.param]
    torch.manual_seed(0)
    return *twins(make().requires_grad_(False)), torch.randn(shape)


def same(first, second):
    """Of two calls under the same seed."""
    results = []
    for call in (first, second):
        torch.manual_seed(1)
        results.append(call())
    for a, b in zip(*map(torch.utils._pytree.tree_leaves, results), strict=True):
        assert torch.equal(a, b)


def test_grad(case):
    plain, lean, x = case
    same(*(lambda m=m: torch.func.grad(lambda x: m(x).square().sum())(x) for m in (plain, lean)))


def test_vmap(case):
    plain, lean, x = case
    same(
        *(
            lambda m=m: torch.func.vmap(m, randomness="same")(torch.stack((x, x + 1)))
            for m in (plain, lean)
        )
    )


def test_jvp(case):
    plain, lean, x = case
    same(*(lambda m=m: torch.func.jvp(m, (x,), (x.cos(),)) for m in (plain, lean)))


def test_forward_mode(case):
    plain, lean, x = case

    def tangent(module):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(module(forward_ad.make_dual(x, x.cos())))

    same(lambda: tangent(plain), lambda: tangent(lean))


def test_functional_call_under_grad(case):
    plain, lean, x = case

    def gradients(module):
        return torch.func.grad(
            lambda p: torch.func.functional_call(module, p, (x,)).square().sum()
        )(dict(module.named_parameters()))

    same(lambda: gradients(plain), lambda: gradients(lean))


def test_per_sample_gradients(case):
    plain, lean, x = case

    def gradients(module):
        one = torch.func.grad(lambda x: module(x[None]).square().sum())
        return torch.func.vmap(one, randomness="same")(x)

    same(lambda: gradients(plain), lambda: gradients(lean))


def test_a_functional_call_alone_stays_lean(case):
    _, lean, x = case
    x.requires_grad_()
    given = {name: p.detach() * 2 for name, p in lean.named_parameters()}
    torch.manual_seed(1)
    output = torch.func.functional_call(lean, given, (x,))
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert gradient.shape == x.shape
