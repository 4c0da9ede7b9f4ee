"""Tensors whose memory does not hold their numbers, in every tensor argument of every op: the same bits as for ordinary ones.

torch hands over such tensors on its own: the gradient of `torch.complex(x, y).conj().imag` has the lazy negative bit set, and
its memory holds the opposite numbers until someone resolves it.
"""

import oracle
import pytest
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from sparse_ft import ops
from sparse_ft.ops import _library

SHAPE = ROWS, COLUMNS = 6, 9
TOKENS = 5
KINDS = [pytest.param(kind, id=kind) for kind in oracle.KINDS]


def numbers(*shape):
    return torch.randn(shape)


def bits_of(tensor):
    return ops.positive_bits(tensor)


def of_layout(kind):
    """The calls that take a layout: {op: arguments}."""
    layout = oracle.layout(kind, SHAPE)
    values_shape = oracle.values_shape(*layout, SHAPE)
    grad_output, input = numbers(TOKENS, ROWS), numbers(TOKENS, COLUMNS)
    listed = [grad_output], [input], [kind], [layout[1]], list(layout[2:])
    return {
        "gather_selected": (numbers(*SHAPE), *layout),
        "scatter_selected_": (numbers(*SHAPE), numbers(*values_shape), *layout),
        "swap_selected_": (numbers(*SHAPE), numbers(*values_shape), *layout),
        "selected_wgrad": (grad_output, input, *layout),
        "selected_wgrad_": (numbers(*values_shape), grad_output, input, *layout),
        "selected_wgrad_grouped": listed,
        "selected_wgrad_grouped_": ([numbers(*values_shape)], *listed),
        "masked_adamw_": adamw(kind, layout, values_shape),
    }


def adamw(kind, layout, values_shape):
    """The positional arguments of `masked_adamw_`: one value that is written through, one plain."""
    shapes = values_shape, (7,)
    values, grads, exp_avgs, exp_avg_sqs = ([numbers(*shape).abs() for shape in shapes] for _ in range(4))
    steps = [torch.tensor(3.0), torch.tensor(4.0)]
    return (values, grads, exp_avgs, exp_avg_sqs, steps, [numbers(*SHAPE)], [kind], [layout[1]], list(layout[2:]))


def elementwise():
    """The calls that take none."""
    input, grad, other = (numbers(4, 3, 8, 8) for _ in range(3))
    mean, weight, bias = (numbers(3) for _ in range(3))
    variance = numbers(3).abs() + 0.1
    flat = numbers(4, 8)
    _, rstd = ops.rms_norm(flat, None)
    return {
        "activation": (input, "gelu"),
        "activation_backward": (grad, input, "silu"),
        "gated_product": (input, other, "silu"),
        "gated_product_backward": (grad, input, other, "gelu_tanh"),
        "rms_norm": (flat, numbers(8)),
        "rms_norm_backward": (numbers(4, 8), flat, rstd, numbers(8)),
        "batch_norm_": (input, mean, variance, weight, bias, 1e-5, True),
        "batch_norm_backward": (grad, weight, variance, 1e-5, bits_of(input)),
        "max_pool": (input, (2, 2), (2, 2), (0, 0), (1, 1)),
        "positive_bits": (input,),
        "relu_bits": (input, torch.empty_like(input)),
        "where_bits": (grad, bits_of(input), 0.5),
    }


ADAMW = dict(lr=[1e-2] * 2, beta1=[0.9] * 2, beta2=[0.99] * 2, eps=[1e-8] * 2, weight_decay=[0.1] * 2)
KEYWORDS = {"masked_adamw_": ADAMW}


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
    return [t.resolve_neg() for t in tree_flatten(returned)[0] if isinstance(t, torch.Tensor)], [t.resolve_neg() for t in left]


def same(found, wanted):
    return all(torch.equal(a, b) for some, others in zip(found, wanted, strict=True) for a, b in zip(some, others, strict=True))


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
        assert same(run(op, given, structure), wanted), f"{op}: other numbers with tensors {some} lazy"


@pytest.mark.parametrize("kind", KINDS)
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
    assert {*of_layout("rows"), *elementwise()} == set(ops.SERVED)


READ_ONLY = {
    **{op: call for op, call in of_layout("columns").items() if not op.endswith("_")},
    **{op: call for op, call in elementwise().items() if not op.endswith("_") and op != "relu_bits"},
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
    ordinary = (numbers(6, 6), torch.nn.Parameter(numbers(2)), torch.tensor([1]), torch.empty(0), numbers(6, 6).T)
    assert _library.plain(ordinary)
    for name, tensor in unusual().items():
        assert not _library.plain((*ordinary, tensor)), name
