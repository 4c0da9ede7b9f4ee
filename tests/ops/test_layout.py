"""The layout table of `sparse_ft.ops.layout` against the one spelled out in the oracle, and what it
refuses.
"""

import oracle
import pytest
import torch

from sparse_ft.ops.layout import Layout, check_matrix, inside

SHAPES = [(7, 5), (1, 9), (9, 1), (6, 8), (0, 4), (4, 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("which", ["some", "last", "all", "empty"])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_coordinates_place_every_value(kind, which, shape):
    layout = Layout(*oracle.layout(kind, shape, which))
    want = oracle.places(*layout, shape)
    row, column = torch.broadcast_tensors(*layout.places(shape))
    assert row.shape == layout.values_shape(shape) == oracle.values_shape(*layout, shape)
    keep = inside(row, column, shape).reshape(-1)
    got = list(
        zip(
            keep.nonzero().squeeze(1).tolist(),
            row.reshape(-1)[keep].tolist(),
            column.reshape(-1)[keep].tolist(),
            strict=True,
        )
    )
    assert got == want


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_coordinates_are_64_bit(index_dtype):
    index = torch.tensor([[2**29, 1]], dtype=index_dtype)
    row, _ = Layout("blocks", index, 8, 8).places((2, 2))
    assert row.dtype == torch.int64 and row[0, 0, 0] == 2**32


@pytest.mark.parametrize(
    "kind, index, block, error, message",
    [
        (
            "rows",
            torch.zeros(2, 2, dtype=torch.int32),
            (1, 1),
            ValueError,
            r"index: .*\[n\].*'rows'.*\(2, 2\)",
        ),
        (
            "blocks",
            torch.zeros(2, dtype=torch.int32),
            (2, 2),
            ValueError,
            r"index: .*\[n, 2\].*'blocks'.*\(2,\)",
        ),
        ("blocks", torch.zeros(2, 3, dtype=torch.int32), (2, 2), ValueError, r"index: .*\(2, 3\)"),
        ("entries", torch.zeros(2), (1, 1), TypeError, r"index: .*torch.float32"),
        ("entries", torch.zeros(2, dtype=torch.int16), (1, 1), TypeError, r"index: .*torch.int16"),
        (
            "blocks",
            torch.zeros(1, 2, dtype=torch.int32),
            (0, 2),
            ValueError,
            r"block_size: .*\(0, 2\)",
        ),
        (
            "blocks",
            torch.zeros(1, 2, dtype=torch.int32),
            (2, -1),
            ValueError,
            r"block_size: .*\(2, -1\)",
        ),
    ],
)
def test_check_layout_names_what_is_wrong(kind, index, block, error, message):
    with pytest.raises(error, match=message):
        Layout(kind, index, *block).check()


def test_check_matrix_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"matrix: .*\(2, 3, 4\)"):
        check_matrix(torch.zeros(2, 3, 4))
    with pytest.raises(TypeError, match=r"matrix: .*torch.int64"):
        check_matrix(torch.zeros(2, 3, dtype=torch.int64))


def test_check_values_names_what_is_wrong():
    index = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"values: .*\(1, 5\).*'rows'.*\(7, 5\).*\(5,\)"):
        Layout("rows", index).check_values(torch.zeros(5), (7, 5))
    with pytest.raises(ValueError, match=r"kind: .*'diagonal'"):
        Layout("diagonal", index).check()
