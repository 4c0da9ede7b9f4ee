"""The autograd functions: gradients against fp64 differences and plain PyTorch, and what is kept
for them.
"""

import oracle
import pytest
import torch
import torch.nn.functional as F
from helpers.products import IN, KINDS, OUT, SELECTIONS, plain_linear, randn, shown

import sparse_ft as sft
from sparse_ft.functional import alias, selective_addmm, selective_embedding, selective_linear

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture(params=SELECTIONS)
def selection(request):
    return SELECTIONS[request.param]


@pytest.fixture(params=KINDS)
def one_of_each_kind(request):
    return SELECTIONS[request.param]


def gradcheck(function, *inputs):
    return torch.autograd.gradcheck(function, inputs, check_batched_grad=False)


@pytest.mark.parametrize("lead", [(5,), (2, 1, 3), ()], ids=["2-D", "4-D", "1-D"])
def test_gradcheck_linear(selection, lead):
    base, bias, input = randn(OUT, IN, grad=False), randn(OUT), randn(*lead, IN)
    values = selection.gather(base).requires_grad_()
    assert gradcheck(
        lambda i, v, b: selective_linear(i, shown(base, selection, v), v, selection, b),
        input,
        values,
        bias,
    )


@pytest.mark.parametrize("lead", [(5,), (2, 3)], ids=["2-D", "3-D"])
def test_gradcheck_addmm(selection, lead):
    base, bias, input = randn(OUT, IN, grad=False), randn(IN), randn(*lead, OUT)
    values = selection.gather(base).requires_grad_()
    assert gradcheck(
        lambda i, v, b: selective_addmm(i, shown(base, selection, v), v, selection, b),
        input,
        values,
        bias,
    )


@pytest.mark.parametrize("padding_idx", [None, 2, -5])
def test_gradcheck_embedding(padding_idx):
    selection, base = sft.Rows([1, 4, 6]), randn(OUT, 3, grad=False)
    tokens = torch.tensor([[0, 1, 1], [4, 6, 5]])
    values = selection.gather(base).requires_grad_()
    assert gradcheck(
        lambda v: selective_embedding(tokens, shown(base, selection, v), v, selection, padding_idx),
        values,
    )


def test_gradcheck_without_bias_or_without_input_gradient(one_of_each_kind):
    base, input = randn(OUT, IN, grad=False), randn(4, IN)
    values = one_of_each_kind.gather(base).requires_grad_()
    linear = lambda i, v: selective_linear(i, shown(base, one_of_each_kind, v), v, one_of_each_kind)  # noqa: E731
    assert gradcheck(linear, input, values)
    assert gradcheck(linear, input.detach(), values)
    assert gradcheck(linear, input, values.detach())


@pytest.mark.parametrize("lead", [(5,), (1,), (2, 3), (0,), (2, 0), ()], ids=str)
def test_equals_plain_pytorch(selection, lead):
    base, bias, input = randn(OUT, IN, grad=False), randn(OUT), randn(*lead, IN)
    values = selection.gather(base).requires_grad_()
    ours = selective_linear(input, base.clone(), values, selection, bias)
    plain = plain_linear(input, base, values, selection, bias)
    assert torch.equal(ours, plain) and ours.shape == (*lead, OUT)
    grad_output = randn(*lead, OUT, grad=False)
    for got, want in zip(
        torch.autograd.grad(ours, (input, values, bias), grad_output),
        torch.autograd.grad(plain, (input, values, bias), grad_output),
        strict=True,
    ):
        assert got.shape == want.shape and torch.allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lead", [(0,), (2, 0)], ids=str)
def test_empty_batch_of_the_others(lead):
    selection, base, input = SELECTIONS["columns"], randn(OUT, IN, grad=False), randn(*lead, OUT)
    values = selection.gather(base).requires_grad_()
    out = selective_addmm(input, base, values, selection, randn(IN))
    out.sum().backward()
    assert out.shape == (*lead, IN) and input.grad.shape == input.shape and not values.grad.any()
    rows = SELECTIONS["rows"]
    table = rows.gather(base).requires_grad_()
    out = selective_embedding(torch.empty(lead, dtype=torch.int64), base, table, rows)
    out.sum().backward()
    assert out.shape == (*lead, IN) and not table.grad.any()


def gradients_of(function, tensors, reduce):
    return torch.autograd.grad(reduce(function(*tensors)), tensors)


REDUCTIONS = {
    "expanded": lambda out: out.sum(),
    "expanded along tokens": lambda out: (out * torch.arange(out.size(-1), dtype=out.dtype)).sum(),
    "transposed": lambda out: (
        out.transpose(0, -1).contiguous()
        * torch.arange(out.numel()).view(out.transpose(0, -1).shape)
    ).sum(),
    "strided": lambda out: (out[..., ::2] ** 2).sum(),
}


@pytest.mark.parametrize("reduce", REDUCTIONS.values(), ids=REDUCTIONS)
def test_grad_output_in_every_memory_format(one_of_each_kind, reduce):
    selection, base = one_of_each_kind, randn(OUT, IN, grad=False)
    tensors = randn(3, 4, IN), selection.gather(base).requires_grad_(), randn(OUT)
    ours = gradients_of(lambda i, v, b: selective_linear(i, base, v, selection, b), tensors, reduce)
    plain = gradients_of(lambda i, v, b: plain_linear(i, base, v, selection, b), tensors, reduce)
    assert all(
        torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(ours, plain, strict=True)
    )


def test_inputs_in_every_memory_format(one_of_each_kind):
    selection, base, bias = one_of_each_kind, randn(OUT, IN, grad=False), randn(OUT)
    values = selection.gather(base).requires_grad_()
    for make in (
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(5, -1, -1),
    ):
        tensors = randn(4, 6, IN), values, bias

        def gradients(linear, make=make, tensors=tensors):
            def forward(input, values, bias):
                return linear(make(input), base, values, selection, bias)

            return gradients_of(forward, tensors, lambda out: out.square().sum())

        ours, plain = gradients(selective_linear), gradients(plain_linear)
        assert all(
            torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(ours, plain, strict=True)
        )


def test_addmm_takes_inputs_that_are_not_contiguous():
    selection, base, bias = SELECTIONS["columns"], randn(OUT, IN, grad=False), randn(IN)
    values, input = selection.gather(base).requires_grad_(), randn(4, 3, OUT)
    out = selective_addmm(input.transpose(0, 1), base, values, selection, bias)
    assert torch.allclose(out, input.transpose(0, 1) @ base + bias)
    out.square().sum().backward()
    dense = torch.einsum("bti,bto->io", input.transpose(0, 1), 2 * out).detach()
    assert torch.allclose(values.grad, dense[:, [0, 3, 9]])


def test_addmm_equals_linear_on_the_transposed_weight(one_of_each_kind):
    base, bias, input = randn(OUT, IN, grad=False), randn(IN), randn(6, OUT)
    values = one_of_each_kind.gather(base).requires_grad_()
    out = selective_addmm(input, base, values, one_of_each_kind, bias)
    assert torch.allclose(out, F.linear(input, base.T, bias))
    grad_output = randn(6, IN, grad=False)
    grads = torch.autograd.grad(out, (input, values, bias), grad_output)
    dense = input.detach().T @ grad_output
    assert torch.allclose(grads[1].cpu(), oracle.gather(dense, one_of_each_kind.layout))
    assert torch.allclose(grads[0], grad_output @ base.T) and torch.allclose(
        grads[2], grad_output.sum(0)
    )


def test_embedding_equals_plain_pytorch():
    selection, tokens = sft.Rows([1, 4, 6]), torch.randint(0, OUT, (5, 8))
    for token_dtype in (torch.int64, torch.int32):
        for padding_idx in (None, 1, 2, -1):
            base = randn(OUT, 3)
            values = selection.gather(base.detach()).requires_grad_()
            out = selective_embedding(
                tokens.to(token_dtype), base.detach(), values, selection, padding_idx
            )
            plain = F.embedding(tokens, base, padding_idx)
            assert torch.equal(out, plain)
            grad_output = randn(5, 8, 3, grad=False)
            out.backward(grad_output)
            plain.backward(grad_output)
            assert torch.allclose(values.grad, base.grad[[1, 4, 6]], rtol=1e-12), (
                token_dtype,
                padding_idx,
            )


@pytest.mark.parametrize(
    "dtype, values_dtype",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32,) * 2,
        (torch.float32, torch.float64),
        (torch.bfloat16,) * 2,
    ],
    ids=str,
)
def test_gradients_have_the_dtype_of_what_they_belong_to(one_of_each_kind, dtype, values_dtype):
    selection, base, bias, input = (
        one_of_each_kind,
        randn(OUT, IN, dtype=dtype, grad=False),
        randn(OUT, dtype=dtype),
        randn(64, IN, dtype=dtype),
    )
    values = selection.gather(base, dtype=values_dtype).requires_grad_()
    out = selective_linear(input, base, values, selection, bias)
    grad_output = randn(64, OUT, dtype=dtype, grad=False)
    out.backward(grad_output)
    assert (out.dtype, input.grad.dtype, values.grad.dtype, bias.grad.dtype) == (
        dtype,
        dtype,
        values_dtype,
        dtype,
    )
    want = oracle.gather(grad_output.double().T @ input.detach().double(), selection.layout)
    plain = oracle.gather(grad_output.float().T @ input.detach().float(), selection.layout).to(
        values_dtype
    )
    slack = (
        64 * torch.finfo(torch.float32).eps
        + torch.finfo(values_dtype).eps * want.abs().max().item()
    )
    oracle.assert_as_good_as_plain(values.grad.cpu(), want, plain, slack)


def test_autocast_gradients_and_no_copy_of_the_weight_kept(one_of_each_kind):
    base, bias, input = (
        randn(OUT, IN, dtype=torch.float32, grad=False),
        randn(OUT, dtype=torch.float32),
        randn(6, IN, dtype=torch.float32),
    )
    values, saved = one_of_each_kind.gather(base).requires_grad_(), []
    with (
        torch.autocast(base.device.type, dtype=torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        out = selective_linear(input, base, values, one_of_each_kind, bias)
    out.backward(torch.ones_like(out))
    assert out.dtype == torch.bfloat16
    assert all(t.grad.dtype == torch.float32 for t in (input, values, bias))
    assert [t.data_ptr() for t in saved if t.shape == base.shape] == [base.data_ptr()]
    want = oracle.gather(
        torch.ones(OUT, 6) @ input.detach().bfloat16().float(), one_of_each_kind.layout
    )
    assert torch.allclose(values.grad.cpu(), want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["linear", "addmm", "embedding", "alias"])
def test_double_backward_is_refused_by_name(name):
    selection, base = sft.Rows([1, 4]), randn(OUT, OUT, grad=False)
    values = selection.gather(base).requires_grad_()
    out = {
        "linear": lambda: selective_linear(randn(3, OUT), base, values, selection),
        "addmm": lambda: selective_addmm(randn(3, OUT), base, values, selection, randn(OUT)),
        "embedding": lambda: selective_embedding(torch.tensor([1, 4]), base, values, selection),
        "alias": lambda: alias(base, values, selection.layout, base.shape),
    }[name]()
    with pytest.raises(RuntimeError, match="double backward .* is not supported"):
        torch.autograd.grad(out.square().sum(), values, create_graph=True)


def test_alias_is_the_weight_and_reduces_its_gradient(one_of_each_kind):
    weight = randn(OUT, 2, IN // 2, grad=False)
    values = one_of_each_kind.gather(weight.view(OUT, IN)).requires_grad_()
    layout = one_of_each_kind.to(weight.device).layout
    shown = alias(weight, values, layout, (OUT, IN))
    factor = torch.randn_like(weight)
    (shown * factor).sum().backward()
    assert shown.data_ptr() == weight.data_ptr() and shown.shape == weight.shape
    assert torch.equal(values.grad.cpu(), oracle.gather(factor.view(OUT, IN), layout))


def test_errors_name_the_argument():
    base, input, selection = randn(OUT, IN, grad=False), randn(5, IN), sft.Rows([1, 4])
    values = selection.gather(base).requires_grad_()
    for call in (
        lambda *a: selective_linear(input, *a),
        lambda *a: selective_addmm(randn(5, OUT), *a, randn(IN)),
        lambda *a: selective_embedding(torch.tensor([1]), *a),
    ):
        with pytest.raises(ValueError, match=r"weight: .*requires_grad_\(False\)"):
            call(base.clone().requires_grad_(), values, selection)
        with pytest.raises(
            ValueError, match=r"values: expected shape \(2, 10\).*\(7, 10\).*got \(2, 9\)"
        ):
            call(base, values[:, :9], selection)
        with pytest.raises(IndexError, match=r"index: row 9 .*\(7, 10\)"):
            call(base, values, sft.Rows([1, 9]))
        with pytest.raises(ValueError, match=r"matrix: .*\(70,\)"):
            call(base.view(-1), values, selection)
    with pytest.raises(TypeError, match="selection: .*whole rows, got 'columns'"):
        selective_embedding(
            torch.tensor([1]), base, sft.Columns([0]).gather(base), sft.Columns([0])
        )
