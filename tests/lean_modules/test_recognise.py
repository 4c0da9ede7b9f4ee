"""What lean leaves alone is in its report, whatever kind of module it is.

Nothing depends on the text of a class.
"""

import ast
import pathlib

import pytest
import torch
import transformers
from helpers.architectures import build
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


class OtherNorm(nn.Module):
    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True)


class OtherLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.mT).mT


class GatedOtherwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.gate_proj(x).sigmoid() * self.up_proj(x)


class OtherExperts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.ones(2, 4, 4))


LEFT = {
    "activation": (nn.Mish, "an activation that is not known"),
    "activation of transformers": (
        transformers.activations.ReLUSquaredActivation,
        "an activation that is not known",
    ),
    "dropout": (nn.AlphaDropout, "a dropout that is not known"),
    "norm": (OtherNorm, "its forward is not one that is known"),
    "subclass": (lambda: OtherLayerNorm(4), "its class is not nn.LayerNorm itself"),
    "gated MLP": (GatedOtherwise, "its forward is not one that is known"),
    "experts": (OtherExperts, "its forward is not one that is known"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_is_named(name):
    make, why = LEFT[name]
    report = sft.lean(nn.Sequential(make(), nn.ReLU()))
    assert report.left == ["0"] and "1" in report.changed
    assert why in str(report) and type(make()).__name__ in report.brief()


@pytest.mark.parametrize(
    "make", [nn.Tanh, nn.Sigmoid, nn.Identity, lambda: nn.GroupNorm(2, 4), lambda: nn.Softmax(-1)]
)
def test_what_cannot_win_is_not(make):
    assert sft.lean(nn.Sequential(make())).left == []


def test_an_mlp_of_two_products_is_as_lean_as_its_parts():
    model, _ = build("GPT-2")
    report = sft.lean(model)
    assert report.left == [] and "transformer.h.0.mlp.act" in report.changed


def test_attention_that_is_left_is_named():
    model, _ = build("Llama")
    model.set_attn_implementation("eager")
    report = sft.lean(model)
    assert not report.attention and "'eager'" in report.attention_left
    assert (
        "lean left its attention: it is 'eager'" in str(report)
        and report.attention_left in report.brief()
    )
    falcon = transformers.FalconModel(
        transformers.FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    assert "'sdpa'" in sft.lean(falcon).attention_left
    model, _ = build("Llama")
    assert sft.lean(model).attention_left == sft.lean(model).attention_left == ""
    assert sft.lean(nn.Sequential(nn.ReLU())).attention_left == ""


FILES = sorted(pathlib.Path(sft.lean.__globals__["__file__"]).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_text_of_a_class_is_read(path):
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {
        name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not names & {"getsource", "getsourcelines", "ast", "hashlib", "tokenize", "linecache"}


def test_a_class_without_a_source_file_is_recognised():
    namespace = {"nn": nn, "torch": torch}
    text = """class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6
    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
"""
    exec(text, namespace)
    assert sft.lean(nn.Sequential(namespace["Scaled"]())).changed == ["0"]
