"""Every op of the native core, called with one wrong argument at a time: it says which and what was
wrong with it, and changes nothing.
"""

import threading

import core
import pytest
import torch
from core import C

T, ROWS, COLUMNS = 6, 4, 8


def matrix(rows=T, columns=COLUMNS):
    return torch.rand(rows, columns) + 1


def bits(count):
    return torch.zeros((count + 7) // 8, dtype=torch.uint8)


def selection(kind="rows"):
    return (kind, torch.tensor([0, 2]), 1, 1)


# What each op is given, in the order of its table. A tensor of several roles is made anew for each.
CALLS = {
    "gather_selected": lambda: dict(
        matrix=matrix(), where=selection(), values=matrix(2), first=0, threads=1
    ),
    "scatter_selected_": lambda: dict(
        matrix=matrix(), where=selection(), values=matrix(2), mode="copy", threads=1
    ),
    "selected_wgrad": lambda: dict(
        grad_output=matrix(T, ROWS),
        input=matrix(),
        where=selection(),
        values=matrix(2),
        accumulate=False,
        threads=1,
    ),
    "dense_product": lambda: dict(
        input=matrix(),
        weight=matrix(ROWS),
        bias=torch.rand(ROWS),
        output=matrix(T, ROWS),
        threads=1,
    ),
    "activation": lambda: dict(input=matrix(), activation="silu", output=matrix(), threads=1),
    "activation_backward": lambda: dict(
        grad_output=matrix(), input=matrix(), activation="relu", grad_input=matrix(), threads=1
    ),
    "gated_product": lambda: dict(
        gate=matrix(), up=matrix(), activation="gelu", output=matrix(), threads=1
    ),
    "gated_product_backward": lambda: dict(
        grad_output=matrix(),
        gate=matrix(),
        up=matrix(),
        activation="gelu_tanh",
        grad_gate=matrix(),
        grad_up=matrix(),
        threads=1,
    ),
    "rms_norm": lambda: dict(
        input=matrix(),
        weight=torch.rand(COLUMNS),
        eps=1e-6,
        offset=0.0,
        output=matrix(),
        rstd=torch.rand(T),
        threads=1,
    ),
    "rms_norm_backward": lambda: dict(
        grad_output=matrix(),
        input=matrix(),
        rstd=torch.rand(T),
        weight=torch.rand(COLUMNS),
        offset=0.0,
        grad_input=matrix(),
        threads=1,
    ),
    "positive_bits": lambda: dict(input=matrix(), bits=bits(T * COLUMNS), relu=matrix(), threads=1),
    "where_bits": lambda: dict(
        grad=matrix(), bits=bits(T * COLUMNS), scale=2.0, output=matrix(), threads=1
    ),
    "batch_norm_": lambda: dict(
        input=matrix(),
        mean=torch.rand(COLUMNS),
        variance=torch.rand(COLUMNS),
        weight=torch.rand(COLUMNS),
        bias=torch.rand(COLUMNS),
        eps=1e-5,
        bits=bits(T * COLUMNS),
        threads=1,
    ),
    "batch_norm_backward": lambda: dict(
        grad_output=matrix(),
        variance=torch.rand(COLUMNS),
        weight=torch.rand(COLUMNS),
        eps=1e-5,
        positive=bits(T * COLUMNS),
        grad_input=matrix(),
        threads=1,
    ),
    "max_pool": lambda: dict(
        input=torch.rand(2, 4, 4),
        kernel_size=(2, 2),
        stride=(2, 2),
        padding=(0, 0),
        dilation=(1, 1),
        output=torch.rand(2, 2, 2),
        numbers=torch.zeros(2, 2, 2, dtype=torch.uint8),
        threads=1,
    ),
}
OPTIONAL = {
    ("dense_product", "bias"),
    ("rms_norm", "weight"),
    ("rms_norm_backward", "weight"),
    ("positive_bits", "relu"),
    ("batch_norm_", "weight"),
    ("batch_norm_", "bias"),
    ("batch_norm_", "bits"),
    ("batch_norm_backward", "weight"),
    ("batch_norm_backward", "positive"),
}
TENSORS = [
    (op, name)
    for op, make in CALLS.items()
    for name, given in make().items()
    if isinstance(given, torch.Tensor)
]


def longer(tensor):
    """With one more along every dimension."""
    return torch.zeros([size + 1 for size in tensor.shape], dtype=tensor.dtype)


def apart(tensor):
    """The same tensor, its elements a number apart."""
    return torch.zeros(*tensor.shape, 2, dtype=tensor.dtype).select(-1, 0)


def without_memory(tensor):
    return torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype)


# (what is handed over instead, the error, its message)
WRONG = {
    "not a tensor": (lambda t: 3.0, TypeError, "expected a dense tensor, got float"),
    "sparse": (lambda t: t.to_sparse(), TypeError, "expected a dense tensor"),
    "elsewhere": (lambda t: t.to("meta"), ValueError, "expected .* in host memory, got one"),
    "no memory": (without_memory, ValueError, "expected .* whose memory is there"),
    "integers": (lambda t: t.to(torch.int32), TypeError, "expected .*, got torch.int32"),
    "complex": (lambda t: t.to(torch.complex64), TypeError, "expected .*, got another dtype"),
    "longer": (longer, ValueError, "expected .*, got "),
    "apart": (apart, ValueError, "expected .*, got .*strides"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("op, name", TENSORS, ids=map(".".join, TENSORS))
def test_a_wrong_tensor_is_refused_by_name(op, name, wrong):
    make, error, message = WRONG[wrong]
    given = CALLS[op]()
    getattr(C, op)(*given.values())  # as it is, it works
    before = {key: t.clone() for key, t in given.items() if isinstance(t, torch.Tensor)}
    given[name] = make(given[name])
    # Where one of two must be as the other, either may be the one that is told.
    told = "|".join(before) if wrong == "longer" else name
    with pytest.raises(error, match=f"^({told}): {message}"):
        getattr(C, op)(*given.values())
    assert all(torch.equal(given[key], t) for key, t in before.items() if key != name)


@pytest.mark.parametrize("op, name", TENSORS, ids=map(".".join, TENSORS))
def test_only_what_is_optional_may_be_left_out(op, name):
    given = CALLS[op]() | {name: None}
    if (op, name) in OPTIONAL:
        getattr(C, op)(*given.values())
    else:
        with pytest.raises(TypeError, match=f"^{name}: expected a dense tensor, got NoneType"):
            getattr(C, op)(*given.values())


@pytest.mark.parametrize("op", CALLS)
def test_no_threads_are_refused(op):
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        getattr(C, op)(*(CALLS[op]() | {"threads": 0}).values())


NUMBERS = [
    ("activation", "activation", "tanh", "activation: expected one of silu, .*got 'tanh'"),
    ("gated_product", "activation", 0, "activation: expected one of silu, .*got 0"),
    ("scatter_selected_", "mode", "move", "mode: expected one of copy, add, swap, got 'move'"),
    ("max_pool", "stride", (1, 0), "stride: expected at least 1, got 0"),
    ("max_pool", "padding", (-1, 0), "padding: expected at least 0, got -1"),
    ("max_pool", "kernel_size", (1, 257), "kernel_size: expected at most 256, got 257"),
]


@pytest.mark.parametrize("op, name, value, message", NUMBERS)
def test_a_wrong_setting_is_refused_by_name(op, name, value, message):
    with pytest.raises(ValueError, match=message):
        getattr(C, op)(*(CALLS[op]() | {name: value}).values())


def test_a_swap_is_between_equal_dtypes():
    given = CALLS["scatter_selected_"]() | {"mode": "swap", "values": matrix(2).bfloat16()}
    with pytest.raises(TypeError, match="values: expected torch.float32, got torch.bfloat16"):
        C.scatter_selected_(*given.values())


def test_rstd_is_in_the_type_of_the_arithmetic():
    given = CALLS["rms_norm"]() | {"rstd": torch.rand(T).bfloat16()}
    with pytest.raises(TypeError, match="rstd: expected torch.float32, got torch.bfloat16"):
        C.rms_norm(*given.values())


def test_rows_that_no_stride_describes_are_refused():
    uneven = torch.rand(3, 5, 2, COLUMNS)[:, :3]
    output = torch.zeros(uneven.shape)
    with pytest.raises(ValueError, match="input: expected rows of contiguous elements, .*strides"):
        C.activation(uneven, "silu", output, 1)
    even = torch.rand(3, 5, 2 * COLUMNS)[..., :COLUMNS]
    C.activation(even, "relu", output := torch.zeros(even.shape), 1)
    assert torch.equal(output, even)


def test_a_layout_of_another_matrix_is_refused():
    given = CALLS["gather_selected"]() | {"where": ("rows", torch.tensor([0, T]), 1, 1)}
    with pytest.raises(IndexError, match=r"index: it names rows .*\(6, 8\) does not have"):
        C.gather_selected(*given.values())


def test_tensors_live_until_the_call_returns():
    """Nobody but the call holds them, and other threads make garbage of what is dropped."""
    done = threading.Event()

    def churn():
        while not done.is_set():
            torch.full((1 << 16,), float("nan"))

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            values = torch.empty(1 << 15)
            index = torch.arange(1 << 15)
            where = ("entries", index * 2, 1, 1)
            C.gather_selected(torch.ones(1 << 8, 1 << 8), where, values, 0, 2)
            assert torch.equal(values, torch.ones(1 << 15))
    finally:
        done.set()
        thread.join()


def test_every_op_of_the_table_is_called_here():
    ops = {name for name in dir(C) if "threads" in (getattr(C, name).__doc__ or "")}
    assert ops == CALLS.keys() | {"masked_adamw_"}
    assert core.C is C
