"""An operation in place on the output of a selective layer works where torch's works.

No Function returns a view.
"""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse_ft as sft
from sparse_ft import functional

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

pytestmark = pytest.mark.usefixtures("on_device")

SHAPES = {1: (8,), 2: (3, 8), 3: (2, 3, 8), 4: (2, 2, 3, 8)}
SELECTIONS = {
    "rows": sft.Rows([1, 4]),
    "columns": sft.Columns([0, 5]),
    "blocks": sft.Blocks([[0, 1]], 4),
    "entries": sft.Entries([0, 9, 40]),
}
LAYERS = {
    "Linear": lambda: nn.Linear(8, 6),
    "Linear without bias": lambda: nn.Linear(8, 6, bias=False),
    "Conv1D": lambda: Conv1D(8, 8),
}
IN_PLACE = {
    "add": lambda y: y.add_(1),
    "iadd": lambda y: _added(y),
    "relu": F.relu_,
    "SiLU": nn.SiLU(inplace=True),
    "dropout": nn.Dropout(0.5, inplace=True),
}


def _added(y):
    y += y.detach().cos()
    return y


def cases():
    """{name: (layer, selection, input)}"""
    found = {}
    for kind, make in LAYERS.items():
        for rank, shape in SHAPES.items():
            # Of which transformers' own Conv1D makes no view.
            strided = rank > 1 and not (kind == "Conv1D" and rank > 2)
            for contiguous in (True, False) if strided else (True,):
                x = torch.linspace(-1, 1, torch.Size(shape).numel()).view(shape)
                if not contiguous:
                    x = x.transpose(0, -1).contiguous().transpose(0, -1)
                for name, selection in SELECTIONS.items():
                    found[f"{kind}, rank {rank}{'' if contiguous else ' strided'}, {name}"] = (
                        make,
                        selection,
                        x,
                    )
    for tokens in (
        torch.tensor(1),
        torch.tensor([1, 3]),
        torch.tensor([[1, 3], [0, 1]]),
        torch.tensor([[[1], [3]]]),
    ):
        found[f"Embedding, rank {tokens.dim()}"] = (
            (lambda: nn.Embedding(5, 8)),
            sft.Rows([1, 2]),
            tokens,
        )
    found["aliased convolution"] = (
        (lambda: nn.Conv1d(3, 4, 2)),
        sft.Rows([1]),
        torch.linspace(-1, 1, 48).view(2, 3, 8),
    )
    return found


CASES = cases()
CONTEXTS = {
    "plain": lambda device: contextlib.nullcontext(),
    "autocast": lambda device: torch.autocast(device.type, torch.bfloat16),
}


def changed_in_place(module, x, change):
    """Output after `change`, and the input's gradient if it has one."""
    if x.is_floating_point():
        x = x.detach().requires_grad_()
    torch.manual_seed(0)
    output = change(module(x * 1))
    output.float().sin().sum().backward()
    return output.detach(), x.grad


def build(name):
    make, selection, x = CASES[name]
    torch.manual_seed(0)
    dense = make()
    model = nn.Sequential(copy.deepcopy(dense))
    sft.convert(
        model,
        {
            "0.weight": selection,
            **({"0.bias": "all"} if getattr(dense, "bias", None) is not None else {}),
        },
    )
    return dense, model, selection, x


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("lean", [False, True], ids=["", "lean"])
@pytest.mark.parametrize("name", CASES)
def test_in_place_on_the_output(name, lean, context, device):
    for change in IN_PLACE.values():
        dense, model, selection, x = build(name)
        if lean:
            sft.lean(model)
        with CONTEXTS[context](device):
            (want, want_grad), (got, grad) = (
                changed_in_place(module, x, change) for module in (dense, model)
            )
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, **({} if lean else dict(rtol=0, atol=0)))
        tolerance = dict(rtol=2e-2, atol=2e-2) if context == "autocast" else {}
        if grad is not None:
            torch.testing.assert_close(grad, want_grad, **tolerance)
        (values,) = (p for n, p in model.named_parameters() if n.endswith("values"))
        dense_grad = dense.weight.grad.reshape(sft.matrix_shape(dense, "weight"))
        torch.testing.assert_close(values.grad, selection.gather(dense_grad), **tolerance)
        if getattr(dense, "bias", None) is not None:
            torch.testing.assert_close(model[0].bias.grad, dense.bias.grad, **tolerance)


@pytest.mark.parametrize("kind", [*LAYERS, "Embedding"])
@pytest.mark.parametrize("rank", [2, 3])
def test_compiled(kind, rank):
    torch._dynamo.reset()
    name = f"Embedding, rank {rank - 1}" if kind == "Embedding" else f"{kind}, rank {rank}, columns"
    dense, model, _, x = build(name)
    results = []
    for module in (dense, model):
        compiled = torch.compile(
            nn.Sequential(module, nn.ReLU(inplace=True)), backend="aot_eager", fullgraph=True
        )
        results.append(changed_in_place(compiled, x, lambda y: y))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want)


def test_no_function_returns_a_view(monkeypatch):
    functions = {
        value
        for value in vars(functional).values()
        if isinstance(value, type) and issubclass(value, torch.autograd.Function)
    }
    seen, views = set(), []

    def watched(cls, forward):
        def forward_and_look(ctx, *args):
            output = forward(ctx, *args)
            seen.add(cls)
            if output._base is not None:
                views.append((cls, tuple(output.shape)))
            return output

        return forward_and_look

    for cls in functions:
        monkeypatch.setattr(
            cls, "forward", staticmethod(watched(cls, vars(cls)["forward"].__func__))
        )
    monkeypatch.setattr(functional, "apply_product", functional._SelectiveProduct.apply)
    monkeypatch.setattr("sparse_ft.nn.linear.apply_product", functional._SelectiveProduct.apply)
    monkeypatch.setattr(functional, "_apply_lean_product", functional._LeanProduct.apply)
    for name in CASES:
        _, model, _, x = build(name)
        model(x)
        if isinstance(model[0], nn.Linear):
            layer, part = model[0], model[0]._sparse_ft_state.part
            product = x, sft.nn.stored(layer, "weight"), layer.values, layer.bias, part, 1
            functional._TracedProduct.apply(*product)  # as in a graph of torch.compile
            functional.lean_product(*product)
    assert not views
    assert seen == functions
