"""The byte counts, against cases that can be counted by hand."""

import sys

import pytest
import torch

pytest.importorskip("tqdm")

from bench import memory  # noqa: E402


def test_saved_bytes_counts_storages_once_and_no_parameters():
    x = torch.randn(8, 16)
    linear = torch.nn.Linear(16, 4)
    assert memory.saved_bytes(linear, lambda: linear(x).sum()) == x.nbytes
    linear.weight.requires_grad_(False)
    assert memory.saved_bytes(linear, lambda: linear(x).sum()) == 0


def test_a_view_keeps_its_whole_storage():
    x = torch.randn(64, 16)
    linear = torch.nn.Linear(4, 4)
    assert memory.saved_bytes(linear, lambda: linear(x[:8, :4]).sum()) == x.nbytes


def test_optimizer_bytes():
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([weight])
    assert memory.optimizer_bytes(optimizer) == 0
    weight.grad = torch.ones(1000)
    optimizer.step()
    # exp_avg, exp_avg_sq and a float32 step
    assert memory.optimizer_bytes(optimizer) == 2 * weight.nbytes + 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_sees_what_was_freed_again():
    if not memory.reset_peak():
        pytest.skip("this system does not reset the high-water mark")
    level = memory.resident_bytes()
    del_me = bytearray(b"x") * (64 * 2**20)
    del del_me
    assert memory.peak_resident_bytes() - level > 48 * 2**20
