"""A new lean module touches one file of the package."""

import example
import pytest

FORWARD = '''
@lean_for(nn.Softshrink)
def softshrink_forward(module: nn.Softshrink, input: torch.Tensor) -> torch.Tensor:
    """`nn.Softshrink`. Kept for backward: one bit an element."""
    return _Softshrink.apply(input, module.lambd)


class _Softshrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, lambd: float) -> torch.Tensor:
        output = F.softshrink(input, lambd)
        ctx.save_for_backward(ops.positive_bits(output.abs()))
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        (bits,) = ctx.saved_tensors
        return ops.where_bits(grad_output, bits, 1.0), None


'''
EDITS = {"sparse_ft/lean_modules/dropout.py": [("@lean_for(nn.Dropout)", FORWARD)]}
USE = """
import torch
from torch import nn
import sparse_ft as sft

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(64, 64), nn.Softshrink()).requires_grad_(False)


def run():
    input = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    output = net(input)
    output.backward(torch.ones_like(output))
    return output.detach(), input.grad


before = run()
assert "Softshrink" in str(sft.lean(net))
for was, now in zip(before, run(), strict=True):
    assert torch.equal(was, now)
held = sft.memory.ledger(net, torch.randn(32, 64).requires_grad_())
print(held.total)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return tmp_path_factory.mktemp("lean_module")


@pytest.fixture(scope="module")
def touched(sources):
    return example.apply("lean_module", EDITS, sources)


def test_it_touches_one_file(touched):
    assert touched == ["sparse_ft/lean_modules/dropout.py"]


def test_it_keeps_one_bit_an_element_and_every_bit_of_the_results(sources, touched):
    held = int(example.run(sources, "-c", USE).split()[-1])
    assert held <= 2 * 32 * 64 / 8
