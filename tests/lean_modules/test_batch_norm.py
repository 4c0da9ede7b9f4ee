"""Lean BatchNorm: running statistics and a frozen weight need no input."""

import pytest
import torch
from helpers.lean_twins import assert_same_every_way, kept, run, twins
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("on_device")

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZES = {1: [(7, 5), (3, 5, 9)], 2: [(3, 5, 4, 6)], 3: [(2, 5, 3, 4, 2)]}


def norm(dims=2, dtype=torch.float32, **options):
    """Frozen, in eval mode, with statistics and parameters far from 0 and 1."""
    model = NORMS[dims](5, **options).requires_grad_(False)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 3 + 0.05)
    return model.eval().to(dtype)


def assert_torchs_bits(plain, lean, x):
    """In fp64 to one rounding: there torch multiplies in another order now and then."""
    wanted, got = run(plain, x), run(lean, x)
    assert torch.equal(wanted[0], got[0])
    if x.dtype == torch.float64:
        torch.testing.assert_close(got[1], wanted[1], rtol=3e-16, atol=0)
    else:
        assert got[1].dtype == wanted[1].dtype and torch.equal(wanted[1], got[1])
    assert wanted[2].keys() == got[2].keys()
    for name, gradient in wanted[2].items():
        torch.testing.assert_close(got[2][name], gradient)


@pytest.mark.parametrize("dims", NORMS)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_eval_mode_keeps_nothing(dims, affine, dtype):
    plain, lean = twins(norm(dims, dtype, affine=affine))
    for size in SIZES[dims]:
        x = torch.randn(size, dtype=dtype)
        assert_torchs_bits(plain, lean, x)
        assert kept(plain, x) >= x.numel() * x.element_size()
        assert kept(lean, x) == 0


def test_channels_last_stays():
    plain, lean = twins(norm())
    x = torch.randn(3, 5, 4, 6).to(memory_format=torch.channels_last)
    assert_torchs_bits(plain, lean, x)
    wanted, got = run(plain, x), run(lean, x)
    assert wanted[0].stride() == got[0].stride() and wanted[1].stride() == got[1].stride()


def test_fp32_parameters_over_a_bf16_input():
    plain, lean = twins(norm())
    assert_torchs_bits(plain, lean, torch.randn(3, 5, 4, 6).bfloat16())


def test_a_bias_trains_without_the_input():
    model = norm()
    model.bias.requires_grad_()
    plain, lean = twins(model)
    x = torch.randn(3, 5, 4, 6)
    assert_torchs_bits(plain, lean, x)
    assert kept(lean, x) == sft.memory.ledger(lean, x).total == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.train(),
        lambda m: m.train() and m.requires_grad_(),
        lambda m: m.requires_grad_(),
        lambda m: m.__setattr__("running_mean", None) or m.__setattr__("running_var", None),
    ],
    ids=["training", "all trains", "weight trains", "no statistics"],
)
def test_what_needs_its_input_is_left_to_torch(change):
    plain, lean = twins(norm())
    change(plain)
    change(lean)
    x = torch.randn(3, 5, 4, 6)
    wanted, got = run(plain, x), run(lean, x)
    assert torch.equal(wanted[0], got[0]) and torch.equal(wanted[1], got[1])
    assert all(torch.equal(wanted[2][n], got[2][n]) for n in wanted[2])
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), lean.state_dict().values(), strict=True)
    )
    assert kept(lean, x) == kept(plain, x) >= x.numel() * 4


def test_a_weight_with_selected_entries_is_left_to_torch():
    model = nn.Sequential(norm())
    sft.convert(model, {"0.weight": sft.Columns([1, 3])})
    plain, lean = twins(model)
    wanted, got = (
        run(
            m,
            torch.randn(
                3, 5, 4, 6, generator=torch.Generator(torch.get_default_device()).manual_seed(0)
            ),
        )
        for m in (plain, lean)
    )
    assert torch.equal(wanted[1], got[1])
    assert all(torch.equal(wanted[2][n], got[2][n]) for n in wanted[2]) and len(got[2]) == 1


def test_statistics_that_change_before_backward_are_reported():
    _, lean = twins(norm())
    out = lean(torch.randn(3, 5, 4, 6, requires_grad=True))
    lean.running_var.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_wrong_input_is_reported_by_torch():
    _, lean = twins(norm())
    with pytest.raises(ValueError, match="expected 4D input"):
        lean(torch.randn(3, 5, requires_grad=True))


def test_gradcheck():
    _, lean = twins(norm(dtype=torch.float64))
    lean.bias.requires_grad_()
    assert torch.autograd.gradcheck(
        lean, torch.randn(2, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    )


def test_every_way():
    assert_same_every_way(*twins(norm()), torch.randn(3, 5, 4, 6))


def test_compile():
    plain, lean = twins(norm())
    x = torch.randn(3, 5, 4, 6)
    for a, b in zip(
        run(plain, x)[:2], run(torch.compile(lean, fullgraph=True), x)[:2], strict=True
    ):
        torch.testing.assert_close(a, b)
