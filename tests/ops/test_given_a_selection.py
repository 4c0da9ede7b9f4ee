"""Ops that are given a Selection instead of its layout say so by argument and way out."""

import pytest
import torch

import sparse_ft as sft
from sparse_ft import ops

ROWS = sft.Rows([1])
MATRIX, VALUES = torch.ones(4, 4), torch.ones(1, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda *layout: ops.gather_selected(MATRIX, *layout),
        lambda *layout: ops.scatter_selected_(MATRIX.clone(), VALUES, *layout),
        lambda *layout: ops.swap_selected_(MATRIX.clone(), VALUES.clone(), *layout),
        lambda *layout: ops.selected_wgrad(MATRIX, MATRIX, *layout),
        lambda *layout: ops.selected_wgrad_(VALUES.clone(), MATRIX, MATRIX, *layout),
    ],
    ids=["gather", "scatter", "swap", "wgrad", "wgrad_"],
)
def test_a_selection_in_place_of_a_layout(call):
    told = (
        r"kind: expected 'rows', .* got Rows\(1 selected.*\); a selection is given as its layout:"
        r" \*selection.layout"
    )
    with pytest.raises(TypeError, match=told):
        call(ROWS)
    with pytest.raises(TypeError, match=told):
        call(ROWS, ROWS.index)
    with pytest.raises(TypeError, match=r"kind: .* got a Tensor \[1\]; .*\*selection.layout"):
        call(ROWS.index)
    with pytest.raises(
        TypeError, match=r"index: expected an integer tensor, got None; .*\*selection.layout"
    ):
        call("rows")
    call(*ROWS.layout)
    call(ROWS.layout)


def test_selections_in_place_of_kinds_in_a_group():
    operands = [MATRIX], [MATRIX]
    with pytest.raises(TypeError, match=r"kind: .* got Rows\(.*\*selection.layout"):
        ops.selected_wgrad_grouped(*operands, [ROWS], [ROWS.index], [1, 1])
    with pytest.raises(TypeError, match=r"kind: .* got Rows\(.*\*selection.layout"):
        ops.selected_wgrad_grouped_([VALUES.clone()], *operands, [ROWS], [ROWS.index], [1, 1])
