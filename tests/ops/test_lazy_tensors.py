"""Tensors whose memory does not hold their numbers, in every tensor argument of every op.

The same bits as for ordinary ones.

torch hands over such tensors on its own: the gradient of `torch.complex(x, y).conj().imag` has the
lazy negative bit set, and its memory holds the opposite numbers until someone resolves it.
"""

import oracle
import pytest
import torch
from helpers.op_calls import KEYWORDS, elementwise, numbers, of_layout
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparse_ft import ops
from sparse_ft.ops import _library


def negated(tensor):
    """The same numbers by the negative bit: the memory holds the opposite ones."""
    return torch._neg_view(-tensor)


def as_torch_hands_over(tensor):
    """The same numbers as torch itself makes such tensors, which lie two apart."""
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def cloned(leaves):
    return [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def run(op, leaves, structure):
    """What the call returns and what its tensors hold afterwards."""
    returned = getattr(ops, op)(*tree_unflatten(leaves, structure), **KEYWORDS.get(op, {}))
    left = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return [t.resolve_neg() for t in tree_flatten(returned)[0] if isinstance(t, torch.Tensor)], [
        t.resolve_neg() for t in left
    ]


def same(found, wanted):
    return all(
        torch.equal(a, b)
        for some, others in zip(found, wanted, strict=True)
        for a, b in zip(some, others, strict=True)
    )


def check(op, arguments, make, only_floats=False):
    """Each tensor argument by itself made lazy, then all of them."""
    leaves, structure = tree_flatten(arguments)
    wanted = run(op, cloned(leaves), structure)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    places = [i for i in places if leaves[i].is_floating_point() or not only_floats]
    for some in (*([i] for i in places), places):
        given = cloned(leaves)
        for i in some:
            given[i] = make(leaves[i])
            assert given[i].is_neg()
        assert same(run(op, given, structure), wanted), (
            f"{op}: other numbers with tensors {some} lazy"
        )


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_negative_bit_in_what_takes_a_layout(kind):
    for op, arguments in of_layout(kind).items():
        check(op, arguments, negated)
        check(op, arguments, as_torch_hands_over, only_floats=True)


@pytest.mark.parametrize("op", elementwise())
def test_negative_bit_in_what_takes_none(op):
    check(op, elementwise()[op], negated)
    if op not in ("batch_norm_", "relu_bits"):  # which write to memory without gaps only
        check(op, elementwise()[op], as_torch_hands_over, only_floats=True)


def test_every_op_is_here():
    assert {*of_layout("rows"), *elementwise(), "dense_product"} == set(ops.SERVED)


@pytest.mark.parametrize("lazy", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_negative_bit_in_a_dense_product(lazy):
    """Of a size that somebody else than torch may serve."""
    tensors = numbers(64, 256), numbers(512, 256), numbers(512)
    given = [negated(tensor) if i in lazy else tensor for i, tensor in enumerate(tensors)]
    torch.testing.assert_close(
        ops.dense_product(*given), torch.nn.functional.linear(*tensors), rtol=1e-4, atol=1e-4
    )


READ_ONLY = {
    **{op: call for op, call in of_layout("columns").items() if not op.endswith("_")},
    **{
        op: call for op, call in elementwise().items() if not op.endswith("_") and op != "relu_bits"
    },
}


@pytest.mark.parametrize("op", READ_ONLY)
def test_zeros_without_memory(op):
    leaves, structure = tree_flatten(READ_ONLY[op])
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            plain, lazy = cloned(leaves), cloned(leaves)
            plain[i], lazy[i] = torch.zeros_like(leaf), torch._efficientzerotensor(leaf.shape)
            assert same(run(op, lazy, structure)[:1], run(op, plain, structure)[:1])


def unusual():
    """{name: tensor of 6 x 6 numbers} that the dispatcher must see first."""
    tensor = numbers(6, 6)
    return {
        "negative bit": negated(tensor),
        "zeros without memory": torch._efficientzerotensor((6, 6)),
        "functional": torch._to_functional_tensor(tensor),
        "sparse": tensor.to_sparse(),
        "sparse rows": tensor.to_sparse_csr(),
        "opaque": tensor.to_mkldnn(),
        "nested": torch.nested.as_nested_tensor([tensor, tensor[:2]]),
        "without data": tensor.to("meta"),
        "a subclass": tensor.as_subclass(type("Own", (torch.Tensor,), {})),
    }


@pytest.mark.filterwarnings("ignore:.*prototype stage", "ignore:Sparse CSR")
def test_who_goes_round_the_dispatcher():
    ordinary = (
        numbers(6, 6),
        torch.nn.Parameter(numbers(2)),
        torch.tensor([1]),
        torch.empty(0),
        numbers(6, 6).T,
    )
    assert _library.plain(ordinary)
    for name, tensor in unusual().items():
        assert not _library.plain((*ordinary, tensor)), name
