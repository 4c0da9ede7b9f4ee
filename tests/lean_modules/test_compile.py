"""torch.compile with dynamic shapes of two lean modules of one kind after each other."""

import pytest
import torch
from torch import nn

import sparse_ft as sft

transformers = pytest.importorskip("transformers")
from transformers.activations import NewGELUActivation, QuickGELUActivation  # noqa: E402
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm  # noqa: E402

pytestmark = pytest.mark.usefixtures("on_device")

LLAMA = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2)
FLAT = {
    "nn.RMSNorm": lambda: nn.RMSNorm(8, eps=1e-5),
    "RMSNorm": lambda: LlamaRMSNorm(8),
    "Gemma's RMSNorm": lambda: GemmaRMSNorm(8),
    "LayerNorm": lambda: nn.LayerNorm(8),
    "MLP": lambda: LlamaMLP(LLAMA),
    "Linear": lambda: nn.Linear(8, 8),
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "ReLU": nn.ReLU,
    "tanh GELU": NewGELUActivation,
    "quick GELU": QuickGELUActivation,
    "Dropout": lambda: nn.Dropout(0.5),
}
PLANES = {
    "Conv1d": lambda: nn.Conv1d(3, 3, 3, padding=1),
    "reflect": lambda: nn.Conv1d(3, 3, 3, padding=1, padding_mode="reflect"),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(3, 3, 1),
    "BatchNorm1d": lambda: nn.BatchNorm1d(3).eval(),
    "MaxPool1d": lambda: nn.MaxPool1d(1),
}


MAKE = FLAT | PLANES
WITH_WEIGHT = [name for name, make in MAKE.items() if dict(make().named_parameters())]
CASES = [(name, "selected") for name in WITH_WEIGHT] + [
    (name, "nothing") for name in MAKE if name not in WITH_WEIGHT
]
CASES += [("RMSNorm", "all"), ("nn.RMSNorm", "all"), ("RMSNorm", "nothing"), ("MLP", "nothing")]


@pytest.mark.parametrize(("name", "trains"), CASES)
def test_two_with_dynamic_shapes(name, trains):
    make = MAKE[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), make(), make())
    plan = {"0.weight": "all"}
    for key, _ in model[1:].named_parameters():
        if trains != "nothing" and key.endswith("weight"):
            plan[key] = "all" if trains == "all" else sft.Entries([1])
    sft.convert(model, plan, lean=True)
    x = torch.randn(2, 3, 8)
    torch.manual_seed(1)
    want = model(x)
    want.sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    torch.manual_seed(1)
    got = torch.compile(model, backend="eager", dynamic=True)(x)
    got.sum().backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close([p.grad for p in model.parameters() if p.requires_grad], grads)
