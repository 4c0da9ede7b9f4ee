"""The index walk of csrc/layout.h, entry by entry, and where its arithmetic passes 2^31."""

import oracle
import pytest
import torch
from core import C


@pytest.mark.parametrize("index_dtype", (torch.int32, torch.int64))
@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("shape", [(7, 10), (1, 5), (6, 1), (9, 8)])
def test_position_is_the_table(kind, shape, index_dtype):
    layout = oracle.layout(kind, shape, "all", index_dtype)
    numel = torch.Size(oracle.values_shape(*layout, shape)).numel()
    want = dict.fromkeys(range(numel), -1) | {
        k: row * shape[1] + column for k, row, column in oracle.places(*layout, shape)
    }
    assert {k: C.position(layout, shape, k) for k in range(numel)} == want


@pytest.mark.parametrize("index_dtype", (torch.int32, torch.int64))
def test_positions_past_32_bits(index_dtype):
    shape = rows, columns = 2_000_000_000, 3_000_000_000
    last = torch.tensor([5, rows - 1], dtype=index_dtype)
    assert C.position(("rows", last, 1, 1), shape, 2 * columns - 1) == rows * columns - 1
    assert (
        C.position(("columns", last, 1, 1), shape, 2 * rows - 1) == (rows - 1) * columns + rows - 1
    )
    assert C.position(("all", last[:0], 1, 1), shape, 5 * 10**18) == 5 * 10**18
    edge = torch.tensor([[0, 0], [rows // 64 - 1, columns // 64 - 1]], dtype=index_dtype)
    assert C.position(("blocks", edge, 64, 64), shape, 2 * 64 * 64 - 1) == rows * columns - 1


def test_entries_past_32_bits():
    index = torch.tensor([7, 2**31, 2**62 + 1])
    layout, shape = ("entries", index, 1, 1), (2**31, 2**31 + 5)
    assert [C.position(layout, shape, k) for k in range(3)] == index.tolist()


def test_padding_has_no_position():
    index = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    layout = ("blocks", index, 2, 3)
    assert [C.position(layout, (3, 4), k) for k in range(12)] == [
        3,
        -1,
        -1,
        7,
        -1,
        -1,
        8,
        9,
        10,
        -1,
        -1,
        -1,
    ]


class Named:
    """A layout that tells what it is by name."""

    kind, block_h, block_w = "rows", 1, 1

    @property
    def index(self):
        return torch.tensor([1, 3])  # lives no longer than whoever reads it holds it


def test_a_layout_is_a_tuple_or_has_the_names_of_one():
    for layout in (("rows", torch.tensor([1, 3]), 1, 1), Named()):
        assert [C.position(layout, (4, 2), k) for k in range(4)] == [2, 3, 6, 7]


INDEX = torch.tensor([0])
BAD = {
    "a tuple too short": (("rows", INDEX, 1), TypeError, "where: expected .kind, index, block_h"),
    "an unknown kind": (("tiles", INDEX, 1, 1), ValueError, "kind: expected one of rows, .*tiles"),
    "a kind by number": ((0, INDEX, 1, 1), ValueError, "kind: expected one of rows, .*got 0"),
    "no index": (("rows", None, 1, 1), TypeError, "index: expected a dense tensor, got NoneType"),
    "floats": (("rows", INDEX.float(), 1, 1), TypeError, "index: expected int32 .*float32"),
    "pairs": (("rows", INDEX[:, None], 1, 1), ValueError, r"index: .*\[n\], got \(1, 1\)"),
    "no pairs": (("blocks", INDEX, 1, 1), ValueError, r"index: .*\[n, 2\], got \(1,\)"),
    "strided": (("rows", torch.zeros(4).long()[::2], 1, 1), ValueError, "index: .*contiguous"),
    "no height": (("rows", INDEX, 0, 1), ValueError, "block_h: expected at least 1, got 0"),
    "no width": (("rows", INDEX, 1, -2), ValueError, "block_w: expected at least 1, got -2"),
    "a wide block": (("rows", INDEX, 1, "2"), TypeError, "where: expected .kind, index, block_h"),
}


@pytest.mark.parametrize("layout, error, match", BAD.values(), ids=BAD)
def test_bad_layouts_are_refused_by_name(layout, error, match):
    with pytest.raises(error, match=match):
        C.position(layout, (2, 2), 0)
