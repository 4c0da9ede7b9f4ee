"""selected_wgrad_grouped is a loop of selected_wgrad, to the bit, over problems of any shapes,
layouts and dtypes.
"""

import oracle
import pytest
import torch

from sparse_ft import ops
from sparse_ft.ops._registry import reference

IMPLEMENTATIONS = {
    "op": (
        ops.selected_wgrad_grouped,
        ops.selected_wgrad_grouped_,
        ops.selected_wgrad,
        ops.selected_wgrad_,
    ),
    "reference": (
        reference("selected_wgrad_grouped"),
        reference("selected_wgrad_grouped_"),
        reference("selected_wgrad"),
        reference("selected_wgrad_"),
    ),
}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return IMPLEMENTATIONS[request.param]


def problems(device, kinds=(*oracle.KINDS, "blocks", "blocks", "blocks")):
    """(grad_outputs, inputs, kinds, indices, blocks).

    Layouts, tokens, shapes and dtypes that differ from one to the next.
    """
    torch.manual_seed(1)
    sizes = [
        (9, 33, 70),
        (1, 7, 5),
        (0, 17, 22),
        (40, 9, 1),
        (700, 48, 64),
        (5, 64, 48),
        (21, 16, 160),
    ]
    dtypes = [
        torch.float32,
        torch.bfloat16,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.bfloat16,
        torch.float16,
    ]
    lists = [], [], [], [], []
    for kind, (tokens, *shape), dtype in zip(kinds, sizes, dtypes):
        layout = oracle.layout(kind, shape, block=(16, 16), device=device)
        operands = [torch.randn(tokens, size).to(device, dtype) for size in shape]
        for items, item in zip(lists, (*operands, *layout[:2])):
            items.append(item)
        lists[4].extend(layout[2:])
    return lists


def one_by_one(lists):
    return list(zip(*lists[:4], lists[4][::2], lists[4][1::2]))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_is_a_loop_of_single_calls(implementation, dtype, device):
    grouped, _, single, _ = implementation
    lists = problems(device)
    found, want = (
        grouped(*lists, dtype=dtype),
        [single(*problem, dtype=dtype) for problem in one_by_one(lists)],
    )
    assert len(found) == 7 and all(oracle.same_bits(a, b) for a, b in zip(found, want, strict=True))


def test_accumulates(implementation, device):
    _, grouped_, single, single_ = implementation
    lists = problems(device)
    found = [
        torch.randn_like(single(*problem, dtype=torch.float32)) for problem in one_by_one(lists)
    ]
    want, versions = [t.clone() for t in found], [t._version for t in found]
    grouped_(found, *lists)
    for into, problem in zip(want, one_by_one(lists)):
        single_(into, *problem)
    assert all(oracle.same_bits(a, b) for a, b in zip(found, want, strict=True))
    assert all(t._version > before for t, before in zip(found, versions))


def test_no_problems(device):
    assert ops.selected_wgrad_grouped([], [], [], [], []) == []
    ops.selected_wgrad_grouped_([], [], [], [], [], [])


def test_opcheck(device):
    lists = problems(device, ("rows", "blocks"))
    torch.library.opcheck(
        torch.ops.sparse_ft.selected_wgrad_grouped.default, tuple(lists), {"dtype": torch.float32}
    )
    into = [torch.zeros_like(t, dtype=torch.float32) for t in ops.selected_wgrad_grouped(*lists)]
    torch.library.opcheck(torch.ops.sparse_ft.selected_wgrad_grouped_.default, (into, *lists))


@pytest.mark.parametrize(
    "which, message",
    [(1, "inputs: expected 7"), (2, "kinds: expected 7"), (4, "blocks: .* 7 problems")],
)
def test_lists_of_other_lengths_are_refused(implementation, which, message, device):
    lists = problems(device)
    lists[which].pop()
    into = [torch.zeros(()) for _ in range(7)]
    for call in (lambda: implementation[0](*lists), lambda: implementation[1](into, *lists)):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_refused_problem_leaves_all_as_they_were(implementation, device):
    lists = problems(device)
    into = [torch.zeros_like(t, dtype=torch.float32) for t in implementation[0](*lists)]
    lists[1][5] = lists[1][5][:2]
    with pytest.raises(ValueError, match="input: expected 5 tokens|input must have the 5 tokens"):
        implementation[1](into, *lists)
    assert not any(t.any() for t in into)
