"""A call of every op on small tensors, for tests that put another kind of tensor into each
argument.
"""

import oracle
import torch

from sparse_ft import ops
from sparse_ft.ops._registry import OPS

SHAPE = ROWS, COLUMNS = 6, 9
TOKENS = 5


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
    values, grads, exp_avgs, exp_avg_sqs = (
        [numbers(*shape).abs() for shape in shapes] for _ in range(4)
    )
    steps = [torch.tensor(3.0), torch.tensor(4.0)]
    return (
        values,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        [numbers(*SHAPE)],
        [kind],
        [layout[1]],
        list(layout[2:]),
    )


def elementwise():
    """The calls that take none."""
    input, grad, other = (numbers(4, 3, 8, 8) for _ in range(3))
    mean, weight, bias = (numbers(3) for _ in range(3))
    variance = numbers(3).abs() + 0.1
    flat = numbers(4, 8)
    _, rstd = ops.rms_norm(flat, None)
    known = {
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
    return {**{name: call for name, op in OPS.items() if (call := made_up(op))}, **known}


def made_up(op):
    """A call of an op that takes nothing but tensors of one shape and numbers; None for others."""
    makers = {"Tensor": lambda: numbers(4, 3, 8, 8), "float": lambda: 0.5}
    types = [argument.type for argument in op.schema.arguments]
    return tuple(makers[type]() for type in types) if set(types) <= makers.keys() else None


ADAMW = dict(
    lr=[1e-2] * 2, beta1=[0.9] * 2, beta2=[0.99] * 2, eps=[1e-8] * 2, weight_decay=[0.1] * 2
)
KEYWORDS = {"masked_adamw_": ADAMW}
