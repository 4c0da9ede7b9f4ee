"""What lean leaves alone is in its report, whatever kind of module it is; what it knows, it knows under every Python."""

import ast

import pytest
import torch
import transformers
from helpers.architectures import SMALL_LM, build
from torch import nn

import sparse_ft as sft
from sparse_ft.lean.recognise import _text


def test_a_syntax_tree_reads_the_same_under_every_python():
    code = "def f(self, x):\n    (y, *z) = x[0, 1:]\n    return not y, f'{z!r} {y:.2f}', g(*z, k=-1.5), 'a' \"b\", u'c'"
    (tree,) = ast.parse(code).body
    assert _text(tree.body[0]) == (
        "Assign(targets=[Tuple(elts=[Name(id='y') Starred(value=Name(id='z'))])] "
        "value=Subscript(value=Name(id='x') slice=Tuple(elts=[Constant(value=0) Slice(lower=Constant(value=1))])))"
    )
    assert _text(tree.body[1].value.elts[2]) == (
        "Call(func=Name(id='g') args=[Starred(value=Name(id='z'))] "
        "keywords=[keyword(arg='k' value=UnaryOp(op=USub() operand=Constant(value=1.5)))])"
    )
    assert [_text(e) for e in tree.body[1].value.elts[3:]] == ["Constant(value='ab')", "Constant(value='c')"]
    assert _text(tree.body[1].value.elts[1]).startswith("JoinedStr(values=[FormattedValue(value=Name(id='z') conversion=114)")


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
    "activation of transformers": (transformers.activations.ReLUSquaredActivation, "an activation that is not known"),
    "dropout": (nn.Dropout2d, "a dropout that is not known"),
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


@pytest.mark.parametrize("make", [nn.Tanh, nn.Sigmoid, nn.Identity, lambda: nn.GroupNorm(2, 4), lambda: nn.Softmax(-1)])
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
    assert "lean left its attention: it is 'eager'" in str(report) and report.attention_left in report.brief()
    falcon = transformers.FalconModel(transformers.FalconConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    assert "'sdpa'" in sft.lean(falcon).attention_left
    model, _ = build("Llama")
    assert sft.lean(model).attention_left == sft.lean(model).attention_left == ""
    assert sft.lean(nn.Sequential(nn.ReLU())).attention_left == ""


def test_a_forward_without_source_is_left_and_named(monkeypatch):
    """As on a Python or a release of transformers whose text is another one."""
    from sparse_ft.lean import recognise

    monkeypatch.setattr(recognise, "fingerprint", lambda *_: None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL_LM))
    left = sft.lean(model).left
    assert {"model.norm", "model.layers.0.mlp", "model.layers.0.mlp.act_fn", "model.layers.0.input_layernorm"} <= set(left)
    mixtral, _ = build("Mixtral")
    assert "model.layers.0.mlp.experts" in sft.lean(mixtral).left
