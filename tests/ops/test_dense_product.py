"""dense_product: F.linear up to rounding whoever serves, and a rule that says who."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_ft import ops
from sparse_ft.diagnosis import backends
from sparse_ft.ops import _native, _onednn
from sparse_ft.ops import dense_product as public
from sparse_ft.ops._processor import processor

rule = sys.modules["sparse_ft.ops._dense_rule"]
LARGE = (64, 512, 640)  # tokens, K, N: enough multiplications for every library
SHAPES = [LARGE, (33, 1031, 517), (4096, 80, 52), (32, 4096, 129), (2311, 100, 2307)]
AMD = {"vendor_id": "AuthenticAMD", "flags": "fpu avx2 avx512f"}


@pytest.fixture(params=["panels", "onednn"])
def library(request, monkeypatch):
    """The choice of one library, on whatever machine this runs."""
    if request.param == "panels" and _native.C is None:
        pytest.skip("the compiled part is missing")
    if request.param == "onednn" and _onednn.find_linear() is None:
        pytest.skip("this torch has no oneDNN linear product")
    monkeypatch.setattr(rule, "choice", lambda: rule.Choice(request.param, "test"))
    return request.param


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def operands(tokens, features, outputs, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens + features + outputs)
    input = torch.randn(tokens, features, generator=generator).to(dtype)
    weight = torch.randn(outputs, features, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    return input, weight, bias


def by_columns(weight):
    """The same numbers, stored column by column."""
    return weight.T.contiguous().T


def assert_as_good_as_torch(got, input, weight, bias):
    """The error against fp64 is at most twice that of torch's own product."""
    wide_bias = None if bias is None else bias.double()
    exact = F.linear(input.double(), weight.double(), wide_bias)
    torchs = (F.linear(input, weight, bias).double() - exact).abs().max()
    assert got.dtype == input.dtype and got.shape == exact.shape
    assert (got.double() - exact).abs().max() <= 2 * torchs


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_at_most_twice_that_of_torch(library, threads, shape):
    input, weight, bias = operands(*shape)
    for stored in (weight, by_columns(weight)):
        for added in (bias, None):
            if rule.server(input, stored, added) != library:
                assert library == "onednn" and shape == SHAPES[2] or shape == SHAPES[3]
                continue
            got = ops.dense_product(input, stored, added)
            assert_as_good_as_torch(got, input, stored, added)


def test_error_does_not_grow_with_the_inner_dimension(library):
    input, weight, bias = operands(256, 8192, 256)
    assert rule.server(input, weight, bias) == library
    assert_as_good_as_torch(ops.dense_product(input, weight, bias), input, weight, bias)


def test_bits_do_not_depend_on_threads_or_dimensions(library):
    input, weight, bias = operands(*LARGE)
    once = ops.dense_product(input, weight, bias)
    deep = ops.dense_product(input.view(4, 16, -1), weight, bias)
    assert deep.shape == (4, 16, LARGE[2]) and deep._base is None
    assert torch.equal(once, deep.view(64, -1))
    if library == "panels":
        before = torch.get_num_threads()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again = ops.dense_product(input, weight, bias)
            torch.set_num_threads(before)
            assert torch.equal(once, again), count


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_reach_what_they_reach_in_torch(library, poison):
    input, weight, bias = operands(*LARGE)
    input[3, 7] = poison
    weight[5, 9] = poison
    got, expected = ops.dense_product(input, weight, bias), F.linear(input, weight, bias)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.isposinf(), expected.isposinf())
    assert torch.equal(got.isneginf(), expected.isneginf())


def test_a_part_of_a_wider_weight_is_read_where_it_lies(library):
    input, weight, bias = operands(*LARGE)
    wide = torch.cat((weight, torch.full_like(weight, float("nan"))), 1)
    part = wide[:, : LARGE[1]]
    assert rule.server(input, part, bias) == library
    assert torch.equal(ops.dense_product(input, part, bias), ops.dense_product(input, weight, bias))


def torchs_cases():
    input, weight, bias = operands(*LARGE)
    every_other = torch.randn(LARGE[2], 2 * LARGE[1])[:, ::2]
    return {
        "one token": (input[:1], weight, bias),
        "few multiplications": operands(64, 32, 32),
        "no tokens": (input[:0], weight, bias),
        "no features": (input[:, :0], weight[:, :0], bias),
        "no outputs": (input, weight[:0], bias[:0]),
        "one dimension": (input[0], weight, bias),
        "bfloat16": operands(*LARGE, dtype=torch.bfloat16),
        "float64": operands(*LARGE, dtype=torch.float64),
        "strided input": (torch.randn(LARGE[1], LARGE[0]).T, weight, bias),
        "strided weight": (input, every_other, bias),
    }


@pytest.mark.parametrize("case", torchs_cases())
def test_torch_serves_what_others_do_not_do_faster_bit_for_bit(library, case):
    input, weight, bias = torchs_cases()[case]
    assert rule.server(input, weight, bias) == "torch"
    assert torch.equal(ops.dense_product(input, weight, bias), F.linear(input, weight, bias))


def test_torch_serves_under_autocast(library):
    input, weight, bias = operands(*LARGE)
    with torch.autocast("cpu", torch.bfloat16):
        assert rule.server(input, weight, bias) == "torch"
        assert ops.dense_product(input, weight, bias).dtype == torch.bfloat16


def test_whoever_intercepts_operators_sees_torchs(library):
    class Seen(TorchDispatchMode):
        names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Seen() as seen:
        ops.dense_product(*operands(*LARGE))
    assert seen.names and not any("mkldnn" in name for name in seen.names)


def test_a_lazy_negative_bit_is_not_lost(library):
    input, weight, bias = operands(*LARGE)
    negative = torch._neg_view(input)
    assert_as_good_as_torch(ops.dense_product(negative, weight, bias), -input, weight, bias)


def test_errors_are_those_of_torch(library):
    input, weight, bias = operands(*LARGE)
    with pytest.raises(RuntimeError, match="shape"):
        public(input, weight[:, :-1].contiguous(), bias)


@pytest.mark.parametrize(
    ("facts", "has_panels", "linear", "expected"),
    [
        (AMD, True, None, "panels"),
        (AMD, False, F.linear, "onednn"),
        (AMD, False, None, "torch"),
        ({**AMD, "flags": "fpu avx2"}, True, F.linear, "torch"),
        ({**AMD, "vendor_id": "GenuineIntel"}, True, F.linear, "torch"),
        ({}, True, F.linear, "torch"),
    ],
    ids=["AMD AVX-512", "not compiled", "neither", "AMD AVX2", "Intel", "unknown"],
)
def test_the_rule_by_processor(facts, has_panels, linear, expected):
    choice = rule.choose(facts, has_panels, linear)
    assert choice.library == expected and choice.why


def other_arguments(*arguments):
    raise TypeError("expected 4 arguments")


@pytest.mark.parametrize(
    "changed",
    [
        other_arguments,
        lambda input, weight, bias, *others: F.linear(input, weight),
        lambda input, weight, bias, *others: F.linear(input, weight.abs(), bias),
    ],
    ids=["other arguments", "no bias", "other numbers"],
)
def test_a_changed_onednn_op_is_not_used(changed):
    assert not _onednn.is_right(changed)
    assert _onednn.is_right(lambda input, weight, bias, *others: F.linear(input, weight, bias))


WITHOUT_THE_OP = """
import sys, types
import torch
from torch._ops import _OpNamespace
torch.ops.mkldnn = _OpNamespace("no_such_namespace")
from sparse_ft.ops import _native, dense_product
from sparse_ft.diagnosis import diagnosis
rule = sys.modules["sparse_ft.ops._dense_rule"]
rule.processor = lambda: {"vendor_id": "AuthenticAMD", "flags": "avx512f"}
rule._native = types.SimpleNamespace(C=None)
input, weight = torch.randn(64, 512), torch.randn(640, 512)
assert torch.equal(dense_product(input, weight), torch.nn.functional.linear(input, weight))
assert "this torch has no oneDNN product" in diagnosis()
print("right")
"""


def test_without_the_op_torch_serves_and_the_diagnosis_says_so():
    command = [sys.executable, "-c", WITHOUT_THE_OP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "right" in done.stdout, done.stderr


def test_backends_say_who_serves_and_why():
    assert backends()["dense_product"]["cpu"] == tuple(rule.choice())


def test_facts_of_the_first_core(tmp_path):
    text = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx512f\n\nvendor_id\t: another\n"
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    facts = processor(str(file))
    assert facts["vendor_id"] == "AuthenticAMD" and facts["flags"].split() == ["fpu", "avx512f"]
    assert processor(str(tmp_path / "none")) == {}
