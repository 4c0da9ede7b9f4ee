"""What `ops._registry` makes of a declaration, and what it refuses."""

import inspect

import pytest
import torch

from sparse_ft import ops
from sparse_ft.ops import _native, _registry
from sparse_ft.ops._library import SERVED
from sparse_ft.ops._registry import OPS, op, reference, source_of
from sparse_ft.ops._schema import parse

NATIVE = pytest.mark.skipif(_native.C is None, reason="no compiled part")


def test_a_schema_taken_apart():
    schema = parse(
        "step_(Tensor(a!)[] values, Tensor? scale, int[2] size, *, float eps=1e-05, ScalarType?"
        " dtype=None) -> (Tensor output, Tensor rstd)"
    )
    assert schema.name == "step_" and schema.results == ["output", "rstd"]
    values, scale, size, eps, dtype = schema.arguments
    assert schema.written == [values] and values.type == "Tensor[]" and values.is_list
    assert scale.is_optional and scale.is_tensor and not scale.is_keyword
    assert not size.is_tensor and size.name == "size"
    assert eps.default == "1e-05" and eps.is_keyword and dtype.default == "None"
    assert parse("nothing(Tensor(a!) input) -> ()").results == []


@pytest.mark.parametrize("name", OPS)
def test_the_public_function_looks_like_its_declaration(name):
    public = getattr(ops, name)
    assert public is OPS[name].public
    declared = [argument.name for argument in OPS[name].schema.arguments]
    parameters = inspect.signature(public).parameters
    assert list(parameters) == declared and public.__name__ == name
    assert inspect.isfunction(public) and inspect.getdoc(public)
    assert all(each.annotation is not each.empty for each in parameters.values())


def test_arguments_that_are_not_those_of_the_schema():
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    declare = op("double(Tensor input) -> Tensor output", shapes=double, cpu=double, triton=double)
    with pytest.raises(TypeError, match=r"double: .* \['input'\], the function \['x'\]"):
        declare(double)


def test_a_backend_that_asks_for_what_is_not_there():
    def triple(input: torch.Tensor) -> torch.Tensor:
        return 3 * input

    def launch(input: torch.Tensor, workspace: torch.Tensor) -> None: ...

    declare = op("triple(Tensor input) -> Tensor output", shapes=launch, cpu=launch, triton=launch)
    with pytest.raises(TypeError, match=r"triple: launch asks for \['workspace'\]"):
        declare(triple)


@pytest.fixture
def calls(monkeypatch):
    """Which way a public function went: the names of those that it calls, in order."""

    def watch(name):
        public = OPS[name].public
        seen = []
        for way in ("on_cpu", "dispatched"):
            made = public.__globals__[way]

            def noted(*arguments, _way=way, _made=made, **keywords):
                seen.append(_way)
                return _made(*arguments, **keywords)

            monkeypatch.setitem(public.__globals__, way, noted)
        return seen

    return watch


def test_round_the_dispatcher_where_nobody_would_miss_it(calls):
    seen = calls("activation")
    x = torch.randn(3, 4)
    want = reference("activation")(x, "silu")
    torch.testing.assert_close(ops.activation(x, "silu"), want)
    assert seen == ["on_cpu"]
    torch.testing.assert_close(ops.activation(torch._neg_view(-x), "silu"), want)
    assert seen == ["on_cpu", "dispatched"]


def test_autograd_is_told_of_what_it_would_follow(calls):
    seen = calls("activation")
    x = torch.randn(3, 4, requires_grad=True)
    ops.activation(x, "silu")
    with torch.no_grad():
        ops.activation(x, "silu")
    assert seen == ["dispatched", "on_cpu"]


def refuse(input: torch.Tensor) -> None:
    raise _native.Unserved(input.dtype)


@NATIVE
def test_what_a_backend_does_not_take_goes_to_the_reference(monkeypatch):
    x = torch.randn(3, 8)
    want = ops.positive_bits(x)
    served = OPS["positive_bits"].backends["cpu"]
    asked = []
    monkeypatch.setitem(served.__globals__, "launch", lambda input, bits: refuse(input))
    otherwise = served.__globals__["otherwise"]
    monkeypatch.setitem(
        served.__globals__, "otherwise", lambda input: asked.append(input) or otherwise(input)
    )
    assert torch.equal(ops.positive_bits(x), want)
    assert asked == [x]


def test_tracebacks_show_the_lines_that_were_made():
    assert "return dispatched(" in source_of("max_pool")
    code = OPS["max_pool"].public.__code__
    assert "def max_pool(" in "".join(_registry.linecache.getlines(code.co_filename))


def total(parts: list[torch.Tensor], more: list[torch.Tensor] | None = None) -> torch.Tensor:
    """One thing made of the arguments."""
    return torch.stack([*parts, *(more or [])])


def test_an_op_of_lists_is_written_about_one_thing_that_is_made_of_them():
    def empty(stacked: torch.Tensor) -> torch.Tensor:
        return stacked.new_empty(stacked.shape[1:])

    def launch(stacked: torch.Tensor, sum: torch.Tensor) -> None:
        raise _native.Unserved(stacked)

    schema = "sum_of_all(Tensor[] parts, Tensor[]? more=None) -> Tensor sum"

    @op(schema, takes=total, shapes=empty, cpu=launch, triton=launch)
    def sum_of_all(stacked: torch.Tensor) -> torch.Tensor:
        return stacked.sum(0)

    try:
        assert list(inspect.signature(sum_of_all).parameters) == ["parts", "more"]
        parts, more = [torch.ones(3), torch.arange(3.0)], [torch.ones(3)]
        want = torch.tensor([1.0, 2.0, 3.0])
        assert torch.equal(sum_of_all(parts), want)
        assert torch.equal(sum_of_all(parts, more), want + 1)
        assert torch.equal(torch.ops.sparse_ft.sum_of_all(parts, more), want + 1)
        assert sum_of_all([part.to("meta") for part in parts]).shape == (3,)
        with pytest.raises(TypeError, match=r"sum_of_all: .* \['parts', 'more'\], the function"):
            op(schema, takes=empty, shapes=empty, cpu=launch, triton=launch)(sum_of_all)
    finally:
        del OPS["sum_of_all"], SERVED["sum_of_all"]
