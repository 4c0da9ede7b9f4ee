"""eight_bit_inputs: labelled approximate, off by default, and as far off as it says."""

import copy

import pytest
import torch
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


def model_of(kind, dtype=torch.float32):
    """Inputs that no lean module can make again: tanh's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8)).to(dtype)
    selection = {
        "rows": sft.Rows([1, 5]),
        "entries": sft.Entries(range(0, 256, 9)),
        "columns": sft.Columns([3]),
    }[kind]
    sft.convert(model, {"2.weight": selection})
    return model


def run(model, dtype=torch.float32):
    model.zero_grad()
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    out = model(x)
    out.square().sum().backward()
    return out.detach(), x.grad, model[2].values.grad.clone()


@pytest.mark.parametrize("kind", ["rows", "entries"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_gradient_of_values_is_approximate(kind, dtype):
    model = model_of(kind, dtype)
    exact = run(copy.deepcopy(model), dtype)
    sft.lean(model, eight_bit_inputs=True)
    out, grad_input, grad_values = run(model, dtype)
    assert torch.equal(out, exact[0]) and torch.equal(grad_input, exact[1])
    error = (grad_values - exact[2]).norm() / exact[2].norm()
    assert 0 < error < 0.01


def test_a_quarter_is_kept():
    model = model_of("rows")
    x = torch.randn(50, 16, requires_grad=True)
    before = sft.memory.ledger(model, x).total
    sft.lean(model, eight_bit_inputs=True)
    tanh = 50 * 32 * 4  # tanh keeps its output, which was the layer's input
    assert sft.memory.ledger(model, x).total == before + 50 * 32 + 50 * 4
    assert before == tanh


def test_off_by_default_and_not_for_columns():
    for kind, options in (("rows", {}), ("columns", {"eight_bit_inputs": True})):
        model = model_of(kind)
        exact = run(copy.deepcopy(model))
        sft.lean(model, **options)
        assert all(torch.equal(a, b) for a, b in zip(run(model), exact))


def test_two_layers_share_one_copy_and_revert_is_exact_again():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 8), nn.Linear(32, 8)

        def forward(self, x):
            x = x.sin()  # keeps x, not its output
            return self.a(x) + self.b(x)

    torch.manual_seed(0)
    model = Two()
    x = torch.randn(50, 32, requires_grad=True)
    sft.convert(model, {"a.weight": sft.Rows([0]), "b.weight": sft.Rows([1])})
    whole = sft.memory.ledger(model, x).total
    sft.lean(model, eight_bit_inputs=True)
    assert sft.memory.ledger(model, x).total == whole - 50 * 32 * 4 + 50 * 32 + 50 * 4
    sft.revert(model)
    assert not [m for m in model.modules() if "forward" in m.__dict__]


def test_zeros_stay_zeros():
    model = model_of("rows")
    sft.lean(model, eight_bit_inputs=True)
    model[0].weight.data.zero_(), model[0].bias.data.zero_()
    assert not run(model)[2].any()
