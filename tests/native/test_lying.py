"""What was prepared of some tensors holds while they lie where they lay, however one looks."""

import pytest
import torch

from sparse_ft.ops import _native

C = _native.C
pytestmark = pytest.mark.skipif(C is None, reason="no compiled part")
NOWHERE = -1


def moved(known, *tensors) -> list[int]:
    return C.rows_that_moved([known], [tuple(tensors)])


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.clone(),
        lambda x: x[:3],
        lambda x: x.t(),
        lambda x: x.view(2, 8),
        lambda x: x.view(torch.int32),
        lambda x: torch._neg_view(x),
        lambda x: x.to("meta"),
        lambda x: x.to_sparse(),
        lambda x: None,
    ],
)
def test_a_tensor_that_lies_otherwise_is_told(change) -> None:
    x, y = torch.ones(4, 4), torch.ones(2)
    known = C.Lying((x, y))
    assert moved(known, x, y) == moved(known, x.detach(), y.view_as(y)) == []
    assert moved(known, change(x), y) == [0]
    assert moved(known, x) == moved(known, y, x) == moved(None, x, y) == [0]


def test_a_gradient_is_known_where_it_lies_as_its_parameter() -> None:
    p = torch.nn.Parameter(torch.ones(4, 4))
    known, grad = C.Lying((p,)), torch.ones(4, 4)

    def address(gradient) -> int:
        (found,) = C.gradient_addresses([known], [gradient], torch.Tensor)
        return found

    assert address(grad) == grad.data_ptr()
    others = grad.double(), grad.t()[:, :3], grad[:3], torch.ones(8, 4)[::2], p, None
    lazy = torch._neg_view(grad), torch._efficientzerotensor((4, 4)), grad.to("meta")
    assert [address(other) for other in (*others, *lazy)] == [NOWHERE] * 9
    empty = torch.ones(0)
    known = C.Lying((empty,))
    assert address(torch.ones(0)) != NOWHERE


def test_what_is_no_row_is_refused() -> None:
    known = C.Lying((torch.ones(2),))
    with pytest.raises(ValueError, match="rows: expected as many as are known"):
        C.rows_that_moved([known], [])
    with pytest.raises(TypeError, match="rows: expected tuples"):
        C.rows_that_moved([known], [[torch.ones(2)]])
    for tensors in ((), (None,), (torch.ones(2).to_sparse(),)):
        with pytest.raises(ValueError, match="tensors: expected"):
            C.Lying(tensors)
