"""Lean max pooling: torch's bits from one byte an output."""

import pytest
import torch
from helpers.lean_twins import assert_same_bits, assert_same_every_way, kept, run, twins
from torch import nn

pytestmark = pytest.mark.usefixtures("on_device")

POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
SIZE = {1: (13,), 2: (11, 9), 3: (7, 6, 8)}
WINDOWS = {
    "plain": dict(kernel_size=2),
    "overlapping": dict(kernel_size=3, stride=2, padding=1),
    "dilated": dict(kernel_size=2, stride=1, dilation=3),
    "ceil_mode": dict(kernel_size=3, stride=2, ceil_mode=True),
    "all": dict(kernel_size=4, stride=3, padding=2, dilation=2, ceil_mode=True),
    "gaps": dict(kernel_size=1, stride=3),
}


def input_of(dims):
    return torch.randn(2, 3, *SIZE[dims])


@pytest.mark.parametrize("dims", POOLS)
@pytest.mark.parametrize("window", WINDOWS)
def test_one_byte_an_output(dims, window):
    plain, lean = twins(POOLS[dims](**WINDOWS[window]))
    for x in (
        input_of(dims),
        input_of(dims)[0],
        input_of(dims).double(),
        input_of(dims).bfloat16(),
    ):
        assert_same_bits(plain, lean, x)
    x = input_of(dims)
    assert kept(lean, x) == lean(x).numel()
    assert kept(plain, x) == x.numel() * 4 + 8 * lean(x).numel()


@pytest.mark.parametrize("window", WINDOWS)
def test_ties_infinities_and_nan(window):
    plain, lean = twins(nn.MaxPool2d(**WINDOWS[window]))
    assert_same_bits(plain, lean, torch.zeros(2, 3, 11, 9))
    assert_same_bits(plain, lean, torch.full((2, 3, 11, 9), -float("inf")))
    x = input_of(2)
    x[0, 0, 4, 5] = float("nan")
    assert_same_bits(plain, lean, x)


def test_windows_of_every_extent():
    plain, lean = twins(nn.MaxPool2d((1, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)))
    assert_same_bits(plain, lean, input_of(2))
    plain, lean = twins(nn.MaxPool2d(4, padding=2))  # wider than the plane
    assert_same_bits(plain, lean, torch.randn(1, 1, 3, 2))


@pytest.mark.parametrize("kernel,size,bytes_", [(16, 40, 1), (17, 40, 2), (185, 190, 4)])
def test_wide_windows_keep_more(kernel, size, bytes_):
    plain, lean = twins(nn.MaxPool2d(kernel, stride=3))
    x = torch.randn(1, 2, size, size)
    assert_same_bits(plain, lean, x)
    assert kept(lean, x) == bytes_ * lean(x).numel()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: x[:, :, ::2],
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x[:0],
    ],
    ids=["channels_last", "permuted", "strided", "expanded", "empty"],
)
def test_other_strides(change):
    assert_same_bits(*twins(nn.MaxPool2d(3, 2, 1)), change(input_of(2)))


def test_indices_are_left_to_torch():
    plain, lean = twins(nn.MaxPool2d(2, return_indices=True))
    x = input_of(2).requires_grad_()
    for a, b in zip(plain(x), lean(x), strict=True):
        assert torch.equal(a, b)


def test_wrong_input_is_reported_by_torch():
    plain, lean = twins(nn.MaxPool2d(2))
    for x in (torch.randn(3, 4, requires_grad=True), torch.randn(2, 2, 1, 1, requires_grad=True)):
        with pytest.raises(RuntimeError) as wanted:
            plain(x)
        with pytest.raises(RuntimeError) as got:
            lean(x)
        assert str(got.value) == str(wanted.value)


@pytest.mark.parametrize("dims", POOLS)
def test_gradcheck(dims):
    _, lean = twins(POOLS[dims](3, 2, 1))
    shape = {1: (2, 24), 2: (2, 6, 4), 3: (2, 4, 3, 2)}[dims]
    values = torch.randperm(48).double().view(shape)  # far apart: no window changes its maximum
    assert torch.autograd.gradcheck(lean, values.requires_grad_())


def test_every_way():
    assert_same_every_way(*twins(nn.MaxPool2d(3, 2, 1)), input_of(2))


def test_compile():
    plain, lean = twins(nn.MaxPool2d(3, 2, 1))
    x = input_of(2)
    for a, b in zip(
        run(plain, x)[:2], run(torch.compile(lean, fullgraph=True), x)[:2], strict=True
    ):
        torch.testing.assert_close(a, b)
