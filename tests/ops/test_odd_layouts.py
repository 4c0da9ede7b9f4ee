"""Sparse, opaque and nested tensors are refused by the argument's name, or served as torch serves
them.
"""

import copy

import pytest
import torch
from helpers.op_calls import KEYWORDS, elementwise, of_layout
from torch import nn
from torch.utils._pytree import tree_map_only

import sparse_ft as sft
from sparse_ft import ops
from sparse_ft.ops._library import NAMES

pytestmark = pytest.mark.filterwarnings("ignore:.*prototype stage", "ignore:Sparse CSR")

LAYOUTS = {
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.to_sparse_csr() if t.dim() == 2 else None,
    "opaque": lambda t: t.to_mkldnn() if t.is_floating_point() and t.dim() in (1, 2, 4) else None,
    "nested": lambda t: torch.nested.as_nested_tensor([t, t]) if t.dim() else None,
    "jagged": lambda t: (
        torch.nested.as_nested_tensor([t, t], layout=torch.jagged) if t.dim() else None
    ),
}
CALLS = {**of_layout("columns"), **elementwise()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", CALLS)
def test_every_tensor_argument(op, layout):
    tried = 0
    for place, name in enumerate(NAMES[op][: len(CALLS[op])]):
        arguments = list(copy.deepcopy(CALLS[op]))
        odd = tree_map_only(torch.Tensor, LAYOUTS[layout], arguments[place])
        inside = odd if isinstance(odd, list) else [odd]
        if not all(isinstance(tensor, torch.Tensor) for tensor in inside):
            continue
        arguments[place] = odd
        with pytest.raises(TypeError, match=f"^{name}: expected a dense tensor"):
            getattr(ops, op)(*arguments, **KEYWORDS.get(op, {}))
        tried += 1
    assert tried or layout in ("sparse rows", "opaque")


def odd_inputs():
    tensor = torch.randn(6, 8)
    return {name: make(tensor) for name, make in LAYOUTS.items()}


def summed(output):
    if output.is_nested:
        return torch.nested.to_padded_tensor(output, 0.0).sum()
    return output.to_dense().sum() if output.layout is not torch.strided else output.sum()


def attempt(model, input, name):
    """The gradient of a parameter, or the error."""
    try:
        summed(model(input)).backward()
    except (RuntimeError, TypeError) as error:
        return error
    return model.get_parameter(name).grad


SELECTIONS = {"columns": sft.Columns([1]), "rows": sft.Rows([1]), "entries": sft.Entries([1, 9])}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SELECTIONS)
def test_a_selective_layer(kind, layout):
    """As the layer that it was, or an error that names the input."""
    dense = nn.Sequential(nn.Linear(8, 4))
    selective = copy.deepcopy(dense)
    sft.convert(selective, {"0.weight": SELECTIONS[kind]})
    input = odd_inputs()[layout]
    wanted, got = attempt(dense, input, "0.weight"), attempt(selective, input, "0.values")
    if isinstance(got, Exception):
        assert isinstance(wanted, Exception) or ": expected a dense tensor" in str(got), got
    else:
        torch.testing.assert_close(got, SELECTIONS[kind].gather(wanted.to_dense()))


LEAN = {
    "relu": nn.ReLU(),
    "dropout": nn.Dropout(0.5),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "norm": nn.RMSNorm(8),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LEAN)
def test_a_lean_module(kind, layout):
    plain = nn.Sequential(copy.deepcopy(LEAN[kind]))
    lean = copy.deepcopy(plain)
    sft.lean(lean)
    results = []
    for model in (plain, lean):
        torch.manual_seed(0)
        input = odd_inputs()[layout].detach().requires_grad_()
        try:
            output = model(input)
            summed(output).backward()
            results.append(summed(output.detach()))
        except (RuntimeError, TypeError) as error:
            results.append(error)
    wanted, got = results
    if isinstance(got, Exception):
        assert isinstance(wanted, Exception) or ": expected a dense tensor" in str(got), got
    else:
        assert torch.equal(got, wanted)


def test_selections():
    nested = torch.nested.as_nested_tensor([torch.arange(3), torch.arange(2)])
    with pytest.raises(TypeError, match="index: .*nested"):
        sft.Rows(nested)
    with pytest.raises(TypeError, match="index: .*sparse"):
        sft.Rows(torch.arange(3).to_sparse())
    with pytest.raises(TypeError, match="mask: .*nested"):
        sft.from_mask(torch.nested.as_nested_tensor([torch.ones(3, dtype=torch.bool)] * 2))
    floats = torch.nested.as_nested_tensor([torch.ones(3), torch.ones(2)])
    for use in (
        sft.Rows([1]).gather,
        lambda matrix: sft.Rows([1]).scatter_(matrix, torch.ones(1, 3)),
    ):
        with pytest.raises(TypeError, match="matrix: .*nested"):
            use(floats)
