"""No autograd Function of a lean module returns a view.

An operation in place on its output works where torch's works.
"""

import contextlib
import copy
import importlib
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse_ft as sft

transformers = pytest.importorskip("transformers")
from transformers.activations import NewGELUActivation, QuickGELUActivation  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm  # noqa: E402
from transformers.models.resnet.modeling_resnet import ResNetConvLayer  # noqa: E402

pytestmark = pytest.mark.usefixtures("on_device")

LLAMA = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2)
FLAT = {  # each takes [..., 8]
    "Linear": lambda: nn.Linear(8, 6),
    "LayerNorm": lambda: nn.LayerNorm(8),
    "nn.RMSNorm": lambda: nn.RMSNorm(8),
    "RMSNorm": lambda: LlamaRMSNorm(8),
    "MLP": lambda: LlamaMLP(LLAMA),
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "ReLU in place": lambda: nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)),
    "tanh GELU": NewGELUActivation,
    "quick GELU": QuickGELUActivation,
    "Dropout": lambda: nn.Dropout(0.5),
}
RANKS = {rank: (2, 3, 2, 4)[4 - rank + 1 :] + (8,) for rank in (1, 2, 3, 4)}
CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def cases():
    """{name: (module, shape of its input, plan or None)}"""
    found = {
        f"{name}, rank {rank}": (make, shape, None)
        for name, make in FLAT.items()
        for rank, shape in RANKS.items()
    }
    for dims in (1, 2, 3):
        shape = (2, 3, *(5,) * dims)
        plans = {
            "frozen": None,
            "rows": {"weight": sft.Rows([1])},
            "channel": {"weight": sft.Columns(range(2**dims))},
        }
        for cls in CONVOLUTIONS[dims]:
            for what, plan in plans.items():
                for batched in (True, False):
                    name = f"{cls.__name__}, {what}, {'batch' if batched else 'one'}"
                    found[name] = (
                        (lambda cls=cls: cls(3, 4, 2)),
                        shape if batched else shape[1:],
                        plan,
                    )
        reflect = CONVOLUTIONS[dims][0]
        found[f"{reflect.__name__}, reflect"] = (
            (lambda cls=reflect: cls(3, 4, 3, padding=1, padding_mode="reflect")),
            shape,
            None,
        )
        found[NORMS[dims].__name__] = (lambda cls=NORMS[dims]: cls(3).eval()), shape, None
        found[POOLS[dims].__name__] = (lambda cls=POOLS[dims]: cls(2)), shape, None
    # Large enough for the op that serves large tensors only.
    found["large GELU"] = (nn.GELU, (2**10, 2**9), None)
    found["BatchNorm1d, rank 2"] = (lambda: nn.BatchNorm1d(3).eval()), (2, 3), None
    found["convolution, norm and ReLU"] = (lambda: ResNetConvLayer(3, 3).eval()), (2, 3, 4, 4), None
    return found


CASES = cases()
CONTEXTS = {
    "plain": lambda device: contextlib.nullcontext(),
    "autocast": lambda device: torch.autocast(device.type, torch.bfloat16),
    "save_on_cpu": lambda device: torch.autograd.graph.save_on_cpu(),
}


def build(name):
    """(the module as torch runs it, its lean twin, an input)"""
    make, shape, plan = CASES[name]
    torch.manual_seed(0)
    module = make()
    twin = copy.deepcopy(module)
    module.requires_grad_(False)
    twin.requires_grad_(False)
    if plan is not None:
        sft.convert(twin, plan)
        module.weight.requires_grad_(True)  # torch chooses its kernel by it
    sft.lean(twin)
    return module, twin, torch.randn(shape)


def changed_in_place(module, x, how):
    """Output after something was done to it in place, and the input's gradient."""
    x = x.detach().requires_grad_()
    torch.manual_seed(1)
    output = module(x * 1)
    output = how(output)
    output.backward(torch.ones_like(output))
    return output.detach(), x.grad


IN_PLACE = {"add": lambda y: y.add_(1), "mul": lambda y: y.mul_(2), "relu": F.relu_}


@pytest.mark.parametrize("context", CONTEXTS)
# torch's ReLU needs its output unchanged
@pytest.mark.parametrize("name", [name for name in CASES if "ReLU" not in name])
def test_in_place_on_the_output(name, context, device):
    plain, lean, x = build(name)
    for how in IN_PLACE.values():
        with CONTEXTS[context](device):
            want, got = (changed_in_place(module, x, how) for module in (plain, lean))
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            bound = (2e-2 if device.type == "cpu" else 4e-2) if context == "autocast" else 1e-5
            assert (a - b).abs().max() <= bound * b.abs().max()


def functions():
    """Every autograd Function of the lean modules."""
    room = importlib.import_module("sparse_ft.lean_modules")
    modules = [
        importlib.import_module(f"{room.__name__}.{info.name}")
        for info in pkgutil.iter_modules(room.__path__)
    ]
    modules.append(importlib.import_module("sparse_ft.linear_cross_entropy"))
    found = {
        value for module in modules for value in vars(module).values() if isinstance(value, type)
    }
    return {cls for cls in found if issubclass(cls, torch.autograd.Function)}


class GatedMLP(nn.Module):
    """Llama's."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 6), nn.Linear(4, 6)
        self.down_proj, self.act_fn = nn.Linear(6, 4), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_no_function_returns_a_view(monkeypatch, device):
    seen, views = set(), []

    def watched(cls, forward):
        def forward_and_look(ctx, *args):
            outputs = forward(ctx, *args)
            seen.add(cls)
            for output in outputs if isinstance(outputs, tuple) else (outputs,):
                if output._base is not None and all(output is not arg for arg in args):
                    views.append((cls, tuple(output.shape)))
            return outputs

        return forward_and_look

    for cls in functions():
        monkeypatch.setattr(cls, "forward", staticmethod(watched(cls, cls.forward)))
    for name in CASES:
        _, lean, x = build(name)
        for context in CONTEXTS.values():
            with context(device):
                lean(x.clone().requires_grad_() * 1)
    sft.functional.linear_cross_entropy(
        torch.randn(3, 4, requires_grad=True), torch.randn(5, 4), torch.tensor([0, 1, 2])
    )
    thinned = nn.ModuleDict({"mlp": GatedMLP()}).requires_grad_(False).train()
    sft.lean(thinned, contextual=sft.Contextual(0.5, every=1))
    thinned["mlp"](torch.randn(5, 4, requires_grad=True))
    assert not views
    assert seen == functions()


@pytest.mark.parametrize("name", ["Linear, rank 3", "Conv1d, frozen, batch", "Conv1d, rows, batch"])
def test_compiled(name, device):
    plain, lean, x = build(name)
    results = []
    for module in (plain, lean):
        model = torch.compile(
            nn.Sequential(module, nn.ReLU(inplace=True)), backend="aot_eager", fullgraph=True
        )
        with torch.autocast(device.type, torch.bfloat16):
            results.append(changed_in_place(model, x, lambda y: y))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
