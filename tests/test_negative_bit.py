"""A gradient that torch hands over with the lazy negative bit set trains a layer as the same
gradient without it.
"""

import copy

import pytest
import torch
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

SELECTIONS = {
    "rows": sft.Rows([0]),
    "columns": sft.Columns([1]),
    "blocks": sft.Blocks([[0, 1]], (1, 2)),
    "entries": sft.Entries([0, 2]),
}
LEAN = {
    "RMSNorm": nn.RMSNorm,
    "GELU": lambda features: nn.GELU(),
    "ReLU": lambda features: nn.ReLU(),
    "Dropout": lambda features: nn.Dropout(0.5),
    "BatchNorm": lambda features: nn.BatchNorm1d(features).eval(),
}
TOKENS = {"GELU": 2**19}  # from which on the op serves
WIDTHS = pytest.mark.parametrize("width", [1, 3])  # one column is contiguous where three are not


def gradient(model, input, name):
    """Of the parameter; the output's own gradient, a part of a conjugate, comes with the
    bit set.
    """
    torch.manual_seed(1)
    lazy = []
    output = model(input)
    output.register_hook(lambda grad: lazy.append(grad.is_neg()))
    slope = torch.complex(torch.randn_like(output.detach()), torch.randn_like(output.detach()))
    (torch.complex(torch.zeros_like(output), output).conj() * slope).imag.sum().backward()
    assert lazy == [True]
    return model.get_parameter(name).grad


@WIDTHS
@pytest.mark.parametrize("structure", SELECTIONS)
def test_selective_linear(structure, width):
    selection = SELECTIONS[structure]
    dense = nn.Sequential(nn.Linear(4, width))
    selective = copy.deepcopy(dense)
    sft.convert(selective, {"0.weight": selection})
    input = torch.randn(5, 4)
    wanted = selection.gather(gradient(dense, input, "0.weight"))
    torch.testing.assert_close(gradient(selective, input, "0.values"), wanted)


@WIDTHS
@pytest.mark.parametrize("kind", LEAN)
def test_lean_modules(kind, width):
    plain = nn.Sequential(nn.Linear(4, width), LEAN[kind](width))
    lean = copy.deepcopy(plain)
    assert sft.lean(lean).changed
    input = torch.randn(TOKENS.get(kind, 5), 4)
    wanted = gradient(plain, input, "0.weight")
    torch.testing.assert_close(gradient(lean, input, "0.weight"), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("structure", SELECTIONS)
def test_a_selected_weight_with_the_bit(structure):
    """As a weight that was loaded or computed as such a part would be."""
    numbers = torch.randn(3, 4)
    outputs = []
    for weight in (numbers, torch._neg_view(-numbers)):
        linear = nn.Linear(4, 3, bias=False)
        linear.weight = nn.Parameter(weight)
        torch.manual_seed(1)
        sft.convert(linear, {"weight": SELECTIONS[structure]})
        optimizer = sft.SelectiveAdamW(linear.parameters(), 0.1)
        for _ in range(2):
            linear(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        sft.revert(linear)
        outputs.append(linear.weight.detach().resolve_neg())
    assert torch.equal(*outputs)
