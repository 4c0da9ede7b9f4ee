"""Fingerprints tell tensors apart by any bit, and leave entries out exactly."""

import pytest
import torch

from sparse_ft.deltas.fingerprint import fingerprint, fingerprint_of_entries

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_over_entries(dtype):
    tensor = torch.randint(0, 2, (9, 70_001)).to(dtype)  # more than one row of coefficients
    if dtype.is_floating_point:
        tensor = torch.randn(9, 70_001).to(dtype)
    positions = torch.randperm(tensor.numel())
    values = tensor.reshape(-1)[positions]
    some = fingerprint_of_entries(values[:1000], positions[:1000])
    others = fingerprint_of_entries(values[1000:], positions[1000:])
    assert (some + others) % 2**64 == fingerprint(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_bit_counts(dtype):
    tensor = torch.randn(300, 300).to(dtype)
    seen = {fingerprint(tensor)}
    width = 8 * tensor.element_size()
    for position in torch.randperm(tensor.numel())[:200].tolist():
        for bit in (0, 13, width - 1):
            changed = tensor.clone().view(-1)
            bits = changed.view({16: torch.int16, 32: torch.int32, 64: torch.int64}[width])
            bits[position] ^= (1 << bit) - (1 << width) * (bit == width - 1)
            seen.add(fingerprint(changed))
    assert len(seen) == 601
    assert fingerprint(-tensor) != fingerprint(tensor)


def test_order_counts():
    tensor = torch.randn(200_000)
    swapped = tensor.clone()
    swapped[[0, 1]] = tensor[[1, 0]]
    far = tensor.clone()
    far[[0, 1 << 16]] = tensor[[1 << 16, 0]]
    assert len({fingerprint(each) for each in (tensor, swapped, far, tensor.flip(0))}) == 4


def test_the_same_for_any_strides_and_the_same_ever_after(device):
    tensor = torch.arange(100_000, dtype=torch.float32, device=device).view(250, 400)
    assert fingerprint(tensor) == fingerprint(tensor.T.contiguous().T)
    assert fingerprint(tensor) == 6660532703039504896  # what files hold must not change


def test_what_has_no_plain_numbers_has_none():
    assert fingerprint(torch.eye(3).to_sparse()) == 0
    assert fingerprint(torch.empty(3, device="meta")) == 0
    assert fingerprint(torch.empty(0)) == 0
