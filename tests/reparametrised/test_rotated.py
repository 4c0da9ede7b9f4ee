"""Values in a rotated basis, against autograd through the dense transform."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparse_ft as sft
from sparse_ft import reparametrised as rp
from sparse_ft.reparametrised import (
    Basis,
    Cosine,
    Dense,
    Hadamard,
    Identity,
    RotatedValues,
    merge,
    put,
)

OUT, IN, TOKENS = 12, 20, 7
ROTATIONS = {"dct": Cosine, "hadamard": Hadamard, "identity": Identity}
BASES = {
    "svd": "svd",
    "svd of rank 5": lambda weight: Basis.svd(weight, 5),
    "dct": "dct",
    "hadamard": "hadamard",
    "hadamard_inputs": "hadamard_inputs",
    "of gradients": lambda weight: Basis.of_gradients([torch.randn_like(weight) for _ in range(3)]),
    "dct and dense": lambda weight: Basis(
        Cosine(OUT), Dense(torch.linalg.qr(torch.randn_like(weight).T)[0])
    ),
}
SELECTIONS = {
    "rows": sft.Rows([0, 3]),
    "columns": sft.Columns([1, 4]),
    "blocks": sft.Blocks([[0, 1], [1, 0]], (2, 3)),
    "entries": sft.Entries([0, 3, 7, 11, 24]),
}


@pytest.mark.parametrize("size", [1, 2, 7, 8, 12, 33])
@pytest.mark.parametrize("name", ROTATIONS)
def test_a_rotation_is_a_matrix_with_orthonormal_columns(name, size):
    rotation = ROTATIONS[name](size)
    q = rotation.to(torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(q.T @ q, torch.eye(size, dtype=torch.float64), atol=1e-14, rtol=0)
    x = torch.randn(2, 3, size, dtype=torch.float64)
    torch.testing.assert_close(rotation.to(x), x @ q)
    torch.testing.assert_close(rotation.back(x), x @ q.T)
    assert rotation.to(x.bfloat16()).dtype == torch.bfloat16


def test_the_cosine_transform_is_the_textbooks():
    n = 6
    i, k = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    q = (2 / n) ** 0.5 * torch.cos(torch.pi * (2 * i + 1) * k / (2 * n))
    q[:, 0] /= 2**0.5
    torch.testing.assert_close(Cosine(n).to(torch.eye(n, dtype=torch.float64)), q)


def test_the_hadamard_transform_is_the_textbooks_in_blocks():
    h = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    four = torch.kron(h, h) / 2
    q = Hadamard(12).to(torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(q, torch.block_diag(four, four, four))


def layer_with(basis, selection, dtype=torch.float64):
    torch.manual_seed(0)
    layer = nn.Linear(IN, OUT, dtype=dtype)
    part = RotatedValues(selection, BASES[basis])
    put(nn.ModuleDict({"layer": layer}), {"layer": part})
    return layer, part


def dense_change(part, values):
    """The matrix [out, in] that the values stand for, by matrices only."""
    like = values.detach()
    left = part.basis.left.to(torch.eye(OUT, dtype=like.dtype))
    right = part.basis.right.to(torch.eye(IN, dtype=like.dtype))
    mask = part.selection.mask(part.basis.shape)
    places = part.selection.scatter_(
        torch.full(part.basis.shape, -1.0, dtype=like.dtype),
        torch.arange(values.numel(), dtype=like.dtype).view(values.shape),
    )
    held = torch.zeros(part.basis.shape, dtype=like.dtype)
    held = held.masked_scatter(mask, values.reshape(-1)[places[mask].long()])
    return left @ held @ right.T


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("basis", BASES)
def test_gradients_are_autograds_through_the_dense_transform(basis, kind):
    layer, part = layer_with(basis, SELECTIONS[kind])
    with torch.no_grad():
        part.values.normal_()
    x = torch.randn(2, TOKENS, IN, dtype=torch.float64, requires_grad=True)
    weight = layer.weight + dense_change(part, part.values)
    want, got = F.linear(x, weight, layer.bias), layer(x)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    grad = torch.randn_like(got)
    ours = torch.autograd.grad(got, [part.values, x], grad)
    theirs = torch.autograd.grad(want, [part.values, x], grad)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("basis", BASES)
def test_merge_then_forward(basis, kind):
    layer, part = layer_with(basis, SELECTIONS[kind])
    model = nn.ModuleDict({"layer": layer})
    with torch.no_grad():
        part.values.normal_()
    x = torch.randn(TOKENS, IN, dtype=torch.float64)
    want = layer(x)
    merge(model)
    assert list(layer.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(layer(x), want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("basis", ["svd", "dct", "hadamard"])
def test_in_single_and_sixteen_bits(basis):
    for dtype in (torch.float32, torch.bfloat16):
        layer, part = layer_with(basis, SELECTIONS["entries"], dtype)
        assert part.values.dtype == torch.float32
        with torch.no_grad():
            part.values.normal_()
        x = torch.randn(TOKENS, IN, dtype=dtype)
        change = dense_change(part, part.values).double()
        want = F.linear(x.double(), layer.weight.double() + change, layer.bias.double())
        bound = 30 * torch.finfo(dtype).eps
        got = layer(x)
        got.sum().backward()
        assert got.dtype == dtype and part.values.grad.dtype == torch.float32
        assert (got - want).abs().max() < bound * want.abs().max()
        merge(nn.ModuleDict({"layer": layer}))
        assert (layer(x) - want).abs().max() < bound * want.abs().max()


def test_nothing_is_kept_of_features_that_no_value_needs():
    layer, part = layer_with("dct", sft.Columns([1, 4]))
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    )
    with hooks:
        layer(torch.randn(100, IN, dtype=torch.float64))
    assert 100 * 2 in saved and max(saved) <= 100 * 2


def test_the_basis_of_an_svd_is_in_the_state_dict():
    layer, part = layer_with("svd", SELECTIONS["entries"])
    with torch.no_grad():
        part.values.normal_()
    state = layer.state_dict()
    assert {"rotated.left", "rotated.right"} < state.keys()
    other, twin = layer_with("svd", SELECTIONS["entries"])
    # An SVD on another machine: the same up to signs.
    twin.basis.left, twin.basis.right = (Dense(-twin.basis.left.matrix), twin.basis.right)
    x = torch.randn(TOKENS, IN, dtype=torch.float64)
    other.load_state_dict(state)
    torch.testing.assert_close(other(x), layer(x), atol=1e-14, rtol=0)
    del state["rotated.left"]
    with pytest.raises(RuntimeError, match="rotated.left"):
        other.load_state_dict(state)


def test_compiled_whole():
    layer, part = layer_with("hadamard", sft.Columns([1, 4]))
    with torch.no_grad():
        part.values.normal_()
    x = torch.randn(TOKENS, IN, dtype=torch.float64)
    layer(x).sum().backward()
    want, part.values.grad = part.values.grad, None
    torch.compile(layer, backend="eager", fullgraph=True)(x).sum().backward()
    torch.testing.assert_close(part.values.grad, want)


@pytest.mark.parametrize(
    ("selection", "basis", "error", "says"),
    [
        (sft.Rows([12]), "dct", IndexError, "parts: 'layer': index.*12"),
        (sft.Rows([5]), lambda weight: Basis.svd(weight, 5), IndexError, "row 5"),
        (sft.Rows([1]), "dst", ValueError, "basis: unknown 'dst'"),
        (sft.Rows([1]), Basis(Cosine(3), Cosine(4)), ValueError, r"basis: of \(3, 4\)"),
    ],
)
def test_refusals(selection, basis, error, says):
    layer = nn.Linear(IN, OUT)
    with pytest.raises(error, match=says):
        put(nn.ModuleDict({"layer": layer}), {"layer": RotatedValues(selection, basis)})
    assert layer.weight.requires_grad and not list(layer.children())


def test_without_a_selection_every_coordinate_trains():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4)).double()
    part = rp.RotatedValues(None, "dct")
    rp.put(model, {"0": part})
    assert part.values.numel() == 24
    x = torch.randn(5, 6, dtype=torch.float64)
    model(x).square().sum().backward()
    part.values.data -= 0.01 * part.values.grad
    output = model(x)
    sft.revert(model)
    torch.testing.assert_close(model(x), output)
    for selection in ("all", 3):
        with pytest.raises(TypeError, match="selection: expected a Selection or None"):
            rp.RotatedValues(selection, "dct")
    with pytest.raises(TypeError, match="basis: expected svd or"):
        rp.RotatedValues(None, 3)
