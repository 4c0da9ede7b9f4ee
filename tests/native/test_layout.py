"""The index walk of csrc/layout.h, entry by entry, and where its arithmetic passes 2^31."""

import oracle
import pytest
import torch
from core import C, native_layout


@pytest.mark.parametrize("index_dtype", (torch.int32, torch.int64))
@pytest.mark.parametrize("kind", oracle.KINDS)
@pytest.mark.parametrize("shape", [(7, 10), (1, 5), (6, 1), (9, 8)])
def test_position_is_the_table(kind, shape, index_dtype):
    layout = oracle.layout(kind, shape, "all", index_dtype)
    numel = torch.Size(oracle.values_shape(*layout, shape)).numel()
    want = dict.fromkeys(range(numel), -1) | {
        k: row * shape[1] + column for k, row, column in oracle.places(*layout, shape)
    }
    assert {k: C.position(native_layout(layout, shape), k) for k in range(numel)} == want


@pytest.mark.parametrize("index_dtype", (torch.int32, torch.int64))
def test_positions_past_32_bits(index_dtype):
    shape = rows, columns = 2_000_000_000, 3_000_000_000
    last = torch.tensor([5, rows - 1], dtype=index_dtype)
    assert (
        C.position(native_layout(("rows", last, 1, 1), shape), 2 * columns - 1)
        == rows * columns - 1
    )
    assert (
        C.position(native_layout(("columns", last, 1, 1), shape), 2 * rows - 1)
        == (rows - 1) * columns + rows - 1
    )
    assert C.position(native_layout(("all", last[:0], 1, 1), shape), 5 * 10**18) == 5 * 10**18
    edge = torch.tensor([[0, 0], [rows // 64 - 1, columns // 64 - 1]], dtype=index_dtype)
    assert (
        C.position(native_layout(("blocks", edge, 64, 64), shape), 2 * 64 * 64 - 1)
        == rows * columns - 1
    )


def test_entries_past_32_bits():
    index = torch.tensor([7, 2**31, 2**62 + 1])
    assert [
        C.position(native_layout(("entries", index, 1, 1), (2**31, 2**31 + 5)), k) for k in range(3)
    ] == index.tolist()


def test_padding_has_no_position():
    index = torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)
    layout = native_layout(("blocks", index, 2, 3), (3, 4))
    assert [C.position(layout, k) for k in range(12)] == [
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


BAD = [
    (0, 5, "kind"),
    (2, 16, "index_bits"),
    (3, -1, "n"),
    (4, 0, "block_h"),
    (5, -2, "block_w"),
    (6, -1, "rows"),
    (7, -1, "columns"),
]


@pytest.mark.parametrize("place, value, argument", BAD)
def test_bad_layouts_are_refused_by_name(place, value, argument):
    layout = list(native_layout(("rows", torch.tensor([0]), 1, 1), (2, 2)))
    layout[place] = value
    with pytest.raises(ValueError, match=rf"layout {argument} must be .*, got {value}"):
        C.position(tuple(layout), 0)
