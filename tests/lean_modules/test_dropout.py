"""Lean dropout: torch's mask from torch's seed, one bit an element."""

import pytest
import torch
from helpers.lean_twins import WAYS, assert_same_bits, kept, run, twins
from torch import nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("on_device")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def input_of(dtype=torch.float32):
    return torch.randn(3, 7, 11).to(dtype)


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.37, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_torchs_bits(p, dtype, inplace):
    plain, lean = twins(nn.Dropout(p, inplace))
    for seed in range(3):
        assert_same_bits(plain, lean, input_of(dtype), seed=seed)
    assert_same_bits(plain.eval(), lean.eval(), input_of(dtype))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_one_bit_an_element(p):
    plain, lean = twins(nn.Dropout(p))
    x = input_of()  # 231 elements
    assert kept(plain, x) == 231 * 4
    assert kept(lean, x) == 29


def test_nothing_is_kept_where_nothing_is_dropped():
    x = input_of().requires_grad_()
    for _, lean in (twins(nn.Dropout(0.0)), twins(nn.Dropout(0.5).eval())):
        assert lean(x) is x
        assert kept(lean, x) == 0
    _, lean = twins(nn.Dropout(1.0))
    assert not lean(x).any()
    assert kept(lean, x) <= 4


def test_the_random_state_moves_as_in_torch():
    states = []
    for model in twins(nn.Dropout(0.3)):
        run(model, input_of(), seed=5)
        torch.manual_seed(5)
        model(input_of().requires_grad_())
        model(input_of())  # no gradient
        with torch.no_grad():
            model(input_of().requires_grad_())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.mT, lambda x: x[:, ::2], lambda x: x[:1].expand(3, -1, -1), lambda x: x[:0]],
    ids=["transposed", "every other", "expanded", "empty"],
)
def test_other_strides(change):
    assert_same_bits(*twins(nn.Dropout(0.4)), change(input_of()))


def test_channels_last():
    assert_same_bits(
        *twins(nn.Dropout(0.4)), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    )


def test_dropped_infinities_are_what_they_are_in_torch():
    x = input_of()
    x[0] = float("inf")
    assert_same_bits(*twins(nn.Dropout(0.4)), x)


def test_feature_dropout_keeps_little_in_torch_and_is_left_to_it():
    import sparse_ft as sft

    for model in (nn.Dropout1d(0.4), nn.Dropout2d(0.4), nn.Dropout3d(0.4)):
        assert not sft.lean(model).rows
    assert "a dropout that is not known" in str(sft.lean(nn.AlphaDropout(0.4)))


def test_gradcheck():
    _, lean = twins(nn.Dropout(0.4))

    def function(x):
        torch.manual_seed(3)
        return lean(x)

    assert torch.autograd.gradcheck(
        function, torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_way(way):
    results, input = [], input_of()
    for model in twins(nn.Sequential(nn.Linear(11, 11), nn.Dropout(0.4), nn.GELU())):
        x = input.clone().requires_grad_()
        torch.manual_seed(1)
        output = WAYS[way](model)(x)
        output.backward(torch.ones_like(output))
        results.append((output, x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0 if way != "autocast" else 1e-2, atol=0)


def test_a_checkpoint_draws_the_same_mask_again():
    _, lean = twins(nn.Dropout(0.5))
    x = torch.ones(1000, requires_grad=True)
    for reentrant in (False, True):
        x.grad = None
        output = checkpoint(lambda x: lean(x).square(), x, use_reentrant=reentrant)
        output.sum().backward()
        assert torch.equal(x.grad, 2 * output)


def test_compile():
    """Compiled code draws another mask than eager torch, for both alike.

    What it does with it can be checked.
    """
    _, lean = twins(nn.Dropout(0.25))
    x = torch.ones(4096, requires_grad=True)
    output = torch.compile(lean, fullgraph=True)(x)
    output.sum().backward()
    assert torch.equal(x.grad, output.detach())
    assert 0.7 < (output > 0).float().mean() < 0.8
