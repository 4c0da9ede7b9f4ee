"""Selections refuse what they are not made of or do not fit, by name and value."""

import pytest
import torch
from helpers.selections import SELECTIONS, SHAPE

import sparse_ft as sft


@pytest.fixture(params=SELECTIONS)
def selection(request):
    return SELECTIONS[request.param]


LINES = (sft.Rows, sft.Columns, sft.Entries)


def blocks_of(index):
    return sft.Blocks(index, 4)


@pytest.mark.parametrize(
    "make, index, error, message",
    [
        *(
            (make, *case)
            for make in LINES
            for case in [
                (torch.tensor([0.0, 1.0]), TypeError, r"index: .*torch.float32"),
                (torch.tensor([True, False]), TypeError, r"index: .*torch.bool.*from_mask"),
                (torch.tensor([1j]), TypeError, r"index: .*torch.complex64"),
                (torch.tensor([[0, 1]]), ValueError, r"index: .*\[n\], got \(1, 2\)"),
                (torch.tensor(3), ValueError, r"index: .*\[n\], got \(\)"),
                (torch.tensor([-1, 2]), IndexError, r"index: .*-1"),
                (
                    torch.tensor([2, 5, 5]),
                    ValueError,
                    r"index: .*5 then 5 at position 1 \(duplicated\)",
                ),
                (
                    torch.tensor([2, 7, 5]),
                    ValueError,
                    r"index: .*7 then 5 at position 1 \(unsorted\)",
                ),
                (torch.empty(0, dtype=torch.int64), ValueError, "index: an empty selection"),
                ([], ValueError, "index: an empty selection"),
                (torch.empty(3, dtype=torch.int64, device="meta"), ValueError, "index: .*meta"),
                ("rows", TypeError, "index: .*'rows'"),
                (None, TypeError, "index: .*None"),
            ]
        ),
        (blocks_of, [[0.5, 1.0]], TypeError, r"index: .*\[n, 2\].*torch.float32"),
        (blocks_of, [0, 1], ValueError, r"index: .*\[n, 2\].*\(2,\)"),
        (blocks_of, [[0, 1, 2]], ValueError, r"index: .*\[n, 2\].*\(1, 3\)"),
        (blocks_of, [[0, -2]], IndexError, r"index: .*-2"),
        (
            blocks_of,
            [[0, 1], [0, 1]],
            ValueError,
            r"index: .*\[0, 1\] then \[0, 1\] at position 0 \(duplicated\)",
        ),
        (
            blocks_of,
            [[0, 1], [0, 0]],
            ValueError,
            r"index: .*\[0, 1\] then \[0, 0\] at position 0 \(unsorted\)",
        ),
        (
            blocks_of,
            [[1, 0], [0, 1]],
            ValueError,
            r"index: .*\[1, 0\] then \[0, 1\] at position 0 \(unsorted\)",
        ),
        (blocks_of, torch.empty(0, 2, dtype=torch.int64), ValueError, "index: an empty selection"),
        (blocks_of, [[0, 1], [2]], TypeError, r"index: .*\[\[0, 1\], \[2\]\]"),
    ],
)
def test_construction_errors(make, index, error, message):
    with pytest.raises(error, match=message):
        make(index)


@pytest.mark.parametrize(
    "block_size", [0, -1, (2, 0), (2,), (1, 2, 3), 1.5, (1.5, 2), "4", None], ids=str
)
def test_block_size_errors(block_size):
    with pytest.raises(
        ValueError, match="block_size: .*" + str(block_size).replace("(", r"\(").replace(")", r"\)")
    ):
        sft.Blocks([[0, 0]], block_size)


@pytest.mark.parametrize(
    "selection, shape, message",
    [
        (sft.Rows([6]), (6, 10), r"index: row 6 .*\(6, 10\).*0 to 5"),
        (sft.Columns([2, 10]), (6, 10), r"index: column 10 .*\(6, 10\).*0 to 9"),
        (sft.Entries([60]), (6, 10), r"index: flat position 60 .*\(6, 10\).*0 to 59"),
        (sft.Blocks([[0, 2], [2, 0]], 4), (8, 10), r"index: block_row 2 .*\(8, 10\).*0 to 1"),
        (sft.Blocks([[0, 3]], 4), (8, 12), r"index: block_col 3 .*\(8, 12\).*0 to 2"),
        (sft.Rows([0]), (0, 10), r"index: row 0 .*\(0, 10\)"),
    ],
)
def test_out_of_range_is_found_on_every_use(selection, shape, message):
    matrix = torch.zeros(shape)
    uses = [
        selection.check,
        selection.values_shape,
        selection.nnz,
        selection.density,
        selection.mask,
    ]
    for use in [
        *(lambda u=u: u(shape) for u in uses),
        lambda: selection.gather(matrix),
        lambda: selection.scatter_(matrix, torch.ones(1)),
    ]:
        with pytest.raises(IndexError, match=message):
            use()
    assert not matrix.any()


@pytest.mark.parametrize("block_size", [(8, 10), (7, 11), (2**40, 1), (1, 2**70)], ids=str)
def test_blocks_larger_than_the_matrix(block_size):
    """Their values would take memory without end, and a file of a few bytes can ask for them."""
    selection, matrix = sft.Blocks([[0, 0]], block_size), torch.zeros(7, 10)
    uses = (selection.check, selection.values_shape, selection.nnz, selection.mask, selection.on)
    for use in (*(lambda use=use: use((7, 10)) for use in uses), lambda: selection.gather(matrix)):
        with pytest.raises(
            ValueError,
            match=rf"block_size: .*{block_size[0]}.*larger than a matrix of shape \(7, 10\)",
        ):
            use()


def test_uses_on_what_is_no_matrix(selection):
    for shape in ((7,), (1, 7, 10), ()):
        for use in (
            selection.check,
            selection.nnz,
            selection.mask,
            lambda s: selection.gather(torch.zeros(s)),
        ):
            with pytest.raises(ValueError, match=r"matrix: .*\[rows, columns\]"):
                use(shape)


def test_scatter_of_values_that_do_not_fit(selection):
    matrix = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"values: .*\(1, 1, 1, 1\)"):
        selection.scatter_(matrix, torch.ones(1, 1, 1, 1))
    assert not matrix.any()
