"""Lean convolutions: torch's bits, without the input."""

import weakref

import pytest
import torch
from helpers.lean_twins import assert_same_bits, assert_same_every_way, kept, run, twins
from torch import nn

import sparse_ft as sft
from sparse_ft.lean_modules import hollow

pytestmark = pytest.mark.usefixtures("on_device")

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZE = {1: (11,), 2: (9, 8), 3: (6, 7, 5)}
SHAPES = {
    "plain": {},
    "strided": dict(stride=2, padding=1),
    "dilated": dict(dilation=2, padding=2),
    "groups": dict(groups=2, padding=1),
    "depthwise": dict(groups=4),
    "no bias": dict(bias=False),
    "1x1": dict(kernel_size=1),
    "same": dict(padding="same"),
    "same, even kernel": dict(padding="same", kernel_size=2, dilation=3),
    "valid": dict(padding="valid"),
    "reflect": dict(padding=2, padding_mode="reflect"),
    "replicate": dict(padding=2, padding_mode="replicate", stride=2),
    "circular": dict(padding=1, padding_mode="circular"),
    "reflect, same": dict(padding="same", padding_mode="reflect", kernel_size=4),
}
OF_TRANSPOSED = {
    "output_padding": dict(stride=3, output_padding=1),
    **{k: SHAPES[k] for k in list(SHAPES)[:7]},
}


def conv(dims, **options):
    return CONV[dims](4, 8, **{"kernel_size": 3, **options}).requires_grad_(False)


def transposed(dims, **options):
    return TRANSPOSED[dims](4, 8, **{"kernel_size": 3, **options}).requires_grad_(False)


def input_of(dims, batch=2):
    return torch.randn(batch, 4, *SIZE[dims])


@pytest.mark.parametrize("dims", CONV)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_convolution_keeps_nothing(dims, shape):
    plain, lean = twins(conv(dims, **SHAPES[shape]))
    for x in (input_of(dims), input_of(dims, 17), input_of(dims)[0], input_of(dims)[:0]):
        assert_same_bits(plain, lean, x)
    x = input_of(dims)
    assert kept(plain, x) >= x.numel() * 4
    assert kept(lean, x) == 0


@pytest.mark.parametrize("dims", TRANSPOSED)
@pytest.mark.parametrize("shape", OF_TRANSPOSED)
def test_a_frozen_transposed_convolution_keeps_nothing(dims, shape):
    plain, lean = twins(transposed(dims, **OF_TRANSPOSED[shape]))
    for x in (input_of(dims), input_of(dims)[0]):
        assert_same_bits(plain, lean, x)
    x = input_of(dims)
    assert kept(plain, x) >= x.numel() * 4
    assert kept(lean, x) == 0


def test_output_size_of_a_transposed_convolution():
    plain, lean = twins(transposed(2, stride=2))
    assert_same_bits(plain, lean, input_of(2), output_size=(20, 18))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    plain, lean = twins(conv(2, padding=1).to(dtype))
    assert_same_bits(plain, lean, input_of(2).to(dtype))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.to(memory_format=torch.channels_last)[:, :, ::2],
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: x[:1].expand(3, -1, -1, -1),
    ],
    ids=["channels_last", "slice of channels_last", "permuted", "expanded"],
)
@pytest.mark.parametrize(
    "options", [{}, SHAPES["reflect"], SHAPES["depthwise"]], ids=["plain", "reflect", "depthwise"]
)
def test_other_strides(change, options):
    plain, lean = twins(conv(2, **options))
    x = change(input_of(2))
    assert_same_bits(plain, lean, x)
    for model in (plain, lean):
        model.to(memory_format=torch.channels_last)
    assert_same_bits(plain, lean, x)


@pytest.mark.parametrize(
    "model",
    [conv(2, padding=1), conv(1, padding=1, padding_mode="reflect"), transposed(3)],
    ids=str,
)
def test_the_input_is_gone_after_the_forward(model):
    """In an ordinary forward; while its bytes are counted, hooks are in force, and another way is
    taken.
    """
    plain, lean = twins(model)
    x = input_of(len(model.kernel_size)).requires_grad_()
    given = x * 1
    alive = weakref.ref(given)
    output = lean(given)
    assert hollow.may_forget(given, lean.weight)
    del given
    assert alive() is None
    output.backward(torch.ones_like(output), retain_graph=True)
    first, x.grad = x.grad, None
    output.backward(torch.ones_like(output))
    assert torch.equal(first, x.grad)
    assert torch.equal(x.grad, torch.autograd.grad(plain(x).sum(), x)[0])


def test_double_backward():
    plain, lean = twins(conv(2, stride=2))
    x = input_of(2).requires_grad_()
    results = []
    for model in (plain, lean):
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        results.append((grad.detach(), *torch.autograd.grad(grad.square().sum(), x)))
    for wanted, got in zip(*results, strict=True):
        assert torch.equal(wanted, got)


def test_a_bias_trains_over_a_frozen_weight():
    for model in (conv(2, padding=1), transposed(1)):
        model.bias.requires_grad_()
        plain, lean = twins(model)
        x = input_of(len(model.kernel_size))
        assert_same_bits(plain, lean, x)
        assert kept(lean, x) == 0
        assert sft.memory.ledger(lean, x).total == 0, "also where the input needs no gradient"


def test_a_weight_that_trains_whole_is_left_to_torch():
    plain, lean = twins(conv(2).requires_grad_())
    x = input_of(2)
    assert_same_bits(plain, lean, x)
    assert kept(lean, x) == kept(plain, x) == x.numel() * 4


def test_wrong_input_is_reported_by_torch():
    plain, lean = twins(conv(2))
    for x in (torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(8, requires_grad=True)):
        with pytest.raises(RuntimeError) as wanted:
            plain(x)
        with pytest.raises(RuntimeError) as got:
            lean(x)
        assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize("shape", ["strided", "same, even kernel", "reflect", "circular"])
def test_gradcheck(shape):
    for dims in (1, 2):
        model = conv(dims, **SHAPES[shape]).double()
        sft.lean(model)
        assert torch.autograd.gradcheck(model, input_of(dims, 1).double().requires_grad_())


def test_gradcheck_transposed():
    model = transposed(2, stride=2, groups=2).double()
    sft.lean(model)
    assert torch.autograd.gradcheck(model, input_of(2, 1).double().requires_grad_())


@pytest.mark.parametrize("shape", ["strided", "same, even kernel", "reflect", "circular"])
def test_every_way(shape):
    assert_same_every_way(*twins(conv(2, **SHAPES[shape])), input_of(2))


def test_every_way_transposed():
    assert_same_every_way(*twins(transposed(2)), input_of(2))


def test_autocast_keeps_no_copy_of_a_weight():
    plain, lean = twins(conv(2))

    def kept_under_autocast(model):
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            return kept(model, input_of(2))

    assert kept_under_autocast(plain) > 0
    assert kept_under_autocast(lean) == 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    last = nn.Conv2d(8, 4, 3, stride=2, padding=1, padding_mode="reflect")
    plain, lean = twins(nn.Sequential(conv(2, padding=1, stride=2), last).requires_grad_(False))
    x = input_of(2)
    wanted = run(plain, x)
    got = run(torch.compile(lean, fullgraph=True, dynamic=dynamic), x)
    for a, b in zip(wanted[:2], got[:2], strict=True):
        torch.testing.assert_close(a, b)
