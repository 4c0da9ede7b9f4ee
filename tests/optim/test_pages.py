"""Huge pages: only where they help, only what is this process's own, and nothing but
time changes.
"""

import ctypes
import mmap
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.ops import _native
from sparse_ft.optim.pages import LEAST

MIB = 1 << 20
MADV_COLLAPSE = 25
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(
    _native.C is None or not THP.exists(), reason="no compiled part, or no Linux with huge pages"
)


def use_huge_pages(tensor):
    return _native.C.use_huge_pages(tensor.data_ptr(), tensor.nbytes)


def resident():
    """Bytes of this process that lie in memory."""
    return (
        int(re.search(r"^Rss:\s+(\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)[1]) << 10
    )


def in_huge_pages(tensor):
    """Bytes of the mappings that hold the tensor which lie in huge pages."""
    first, last, found, inside = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(mapping[1], 16) < last and int(mapping[2], 16) > first
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) << 10
    return found


@pytest.fixture
def offered():
    """Skip where this system has no huge page to give, as a virtual machine or a
    container may not.
    """
    if not use_huge_pages(torch.ones(8 * MIB, dtype=torch.uint8)):
        pytest.skip("the system gives no huge pages")


def moved(tensor, least):
    """Bytes that `use_huge_pages` moves. Skips where the system has not `least` of them to give,
    now, as one that has run for long may not.
    """
    for _ in range(5):  # a page may be held for a moment
        bytes_moved = use_huge_pages(tensor)
        if bytes_moved >= least:
            return bytes_moved
    if not gives(tensor.nbytes):
        pytest.skip("the system has no such number of huge pages now")
    return bytes_moved


def gives(size):
    """Whether the system gives so many bytes in huge pages, asked without our code."""
    memory = mmap.mmap(-1, size + 4 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(memory, dtype=torch.uint8).fill_(1)
    first = -(-tensor.data_ptr() // (2 * MIB)) * 2 * MIB
    collapse = ctypes.CDLL(None).madvise
    collapse.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return collapse(first, -(-size // (2 * MIB)) * 2 * MIB, MADV_COLLAPSE) == 0


def test_whole_ranges_move_and_keep_what_they_hold(offered):
    # Over the largest size that malloc takes from its heap.
    tensor = torch.randint(256, (33 * MIB,), dtype=torch.uint8)
    before, size = tensor.clone(), resident()
    bytes_moved, grown = moved(tensor, 30 * MIB), resident() - size
    assert 30 * MIB <= bytes_moved <= 33 * MIB and bytes_moved % (2 * MIB) == 0
    assert in_huge_pages(tensor) >= bytes_moved
    assert torch.equal(tensor, before) and grown <= MIB
    assert moved(tensor, bytes_moved) == bytes_moved


@pytest.mark.parametrize("shared", [True, False])
def test_mapped_files_are_left_alone(tmp_path, shared):
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (8 * MIB // 256))
    tensor = torch.from_file(str(file), shared=shared, size=8 * MIB, dtype=torch.uint8)
    tensor.add_(0 if shared else 1)
    before = tensor.clone()
    assert use_huge_pages(tensor) == 0 and in_huge_pages(tensor) == 0
    assert torch.equal(tensor, before) and file.read_bytes()[:256] == bytes(range(256))


def test_shared_memory_is_left_alone():
    tensor = torch.ones(8 * MIB, dtype=torch.uint8).share_memory_()
    assert use_huge_pages(tensor) == 0


def test_memory_that_nobody_touched_stays_away(offered):
    memory = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    tensor[8 * MIB :] = 1
    size = resident()
    bytes_moved, grown = moved(tensor, 6 * MIB), resident() - size
    assert 6 * MIB <= bytes_moved <= 8 * MIB and grown <= MIB
    assert not tensor[: 8 * MIB].any()


@pytest.mark.parametrize("bytes", [0, 1, MIB])
def test_too_small_to_hold_a_huge_page(bytes):
    assert use_huge_pages(torch.ones(bytes, dtype=torch.uint8)) == 0


SELECTIONS = {
    "entries": sft.Entries(range(0, 4096 * 1024, 999)),
    "columns": sft.Columns(range(0, 1024, 99)),
    "rows": sft.Rows(range(0, 4096, 99)),
    "blocks": sft.Blocks([[0, 1], [5, 2]], (16, 16)),
}


def stepped(weight, selection, steps=2):
    linear = nn.Linear(*weight.shape[::-1], bias=False, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight)
    sft.convert(linear, {"weight": selection})
    optimizer = sft.SelectiveAdamW(linear.parameters(), 0.1)
    for _ in range(steps):
        linear.values.grad = torch.ones_like(linear.values)
        optimizer.step()
    return linear


@pytest.mark.parametrize("kind", SELECTIONS)
def test_the_first_step_spreads_a_scattered_selection(kind, monkeypatch):
    seen = []
    monkeypatch.setattr("sparse_ft.optim.pages._native.C", Watched(_native.C, seen))
    weight = torch.randn(4096, 1024).bfloat16()
    linear = stepped(weight.clone(), SELECTIONS[kind])
    far_apart = kind in ("entries", "columns")
    assert seen == ([(linear.weight.data_ptr(), linear.weight.nbytes)] if far_apart else [])
    chosen = linear.selection.mask((4096, 1024))
    assert (
        torch.equal(linear.weight[~chosen], weight[~chosen])
        and (linear.weight[chosen] != weight[chosen]).any()
    )


def test_small_weights_stay_where_they_are(monkeypatch):
    seen = []
    monkeypatch.setattr("sparse_ft.optim.pages._native.C", Watched(_native.C, seen))
    stepped(torch.randn(LEAST // 4 // 64 - 1, 64), sft.Columns([3]))
    assert not seen


class Watched:
    """`sparse_ft._C` that tells which memory it was asked to move."""

    def __init__(self, core, seen):
        self._core, self._seen = core, seen

    def __getattr__(self, name):
        return getattr(self._core, name)

    def use_huge_pages(self, data, bytes):
        self._seen.append((data, bytes))
        return self._core.use_huge_pages(data, bytes)


def test_a_weight_mapped_from_a_checkpoint_trains_as_any_other(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    weight, file = torch.randn(4096, 1024).bfloat16(), tmp_path / "model.safetensors"
    safetensors.save_file({"weight": weight}, file)
    before = file.read_bytes()
    mapped = safetensors.load_file(file)["weight"]
    trained = stepped(mapped, SELECTIONS["entries"])
    assert trained.weight.data_ptr() == mapped.data_ptr() and in_huge_pages(mapped) == 0
    assert torch.equal(trained.weight, stepped(weight.clone(), SELECTIONS["entries"]).weight)
    assert file.read_bytes() == before
