"""Who reads a weight by attribute, or calls a module's forward directly, sends its gradient to the
selected entries.
"""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft

Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

pytestmark = pytest.mark.usefixtures("on_device")


class Read(nn.Module):
    """Only read: torchvision's Swin, timm's BEiT and EVA-02, Mamba's dt_proj."""

    def __init__(self, layer, product):
        super().__init__()
        self.layer, self.product = layer, product

    def forward(self, x):
        return self.product(x, self.layer.weight)


class CalledAndRead(nn.Module):
    """Called, and its weight read: Perceiver, ProphetNet, heads that are tied by hand."""

    def __init__(self, layer, product):
        super().__init__()
        self.layer, self.product = layer, product

    def forward(self, x):
        return self.product(self.layer(x), self.layer.weight)


class Direct(nn.Module):
    """`layer.forward(x)`, which runs no hooks."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer.forward(x)


class DirectAndCalled(Direct):
    def forward(self, x):
        return self.layer.forward(x) + self.layer(2 * x)


X = torch.linspace(-1, 1, 24).view(2, 3, 4)
IMAGES = torch.linspace(-1, 1, 48).view(2, 4, 6)
TOKENS = torch.tensor([[1, 3, 0], [4, 1, 1]])
MODELS = {
    "linear read": lambda: (Read(nn.Linear(4, 5), F.linear), X, sft.Rows([1, 4])),
    "linear called and read": lambda: (
        CalledAndRead(nn.Linear(4, 4), F.linear),
        X,
        sft.Columns([0, 3]),
    ),
    "Conv1D read": lambda: (Read(Conv1D(5, 4), torch.matmul), X, sft.Entries([0, 7, 19])),
    "Conv1D called and read": lambda: (CalledAndRead(Conv1D(4, 4), torch.matmul), X, sft.Rows([2])),
    "embedding read": lambda: (
        Read(nn.Embedding(5, 4), lambda x, w: w[x].square()),
        TOKENS,
        sft.Rows([1, 3]),
    ),
    "embedding called and read": lambda: (
        CalledAndRead(nn.Embedding(5, 4), F.linear),
        TOKENS,
        sft.Rows([1, 2]),
    ),
    "aliased embedding": lambda: (
        CalledAndRead(nn.Embedding(5, 4), F.linear),
        TOKENS,
        sft.Columns([1, 2]),
    ),
    "linear direct": lambda: (Direct(nn.Linear(4, 5)), X, sft.Columns([1])),
    "convolution direct": lambda: (Direct(nn.Conv1d(4, 3, 2)), IMAGES, sft.Rows([1])),
    "convolution direct and called": lambda: (
        DirectAndCalled(nn.Conv1d(4, 3, 2)),
        IMAGES,
        sft.Columns([1, 5]),
    ),
    "norm direct": lambda: (Direct(nn.LayerNorm(4)), X, sft.Entries([1, 2])),
    "norm direct and called": lambda: (DirectAndCalled(nn.LayerNorm(4)), X, sft.Entries([1, 2])),
}
WAYS = {
    "plain": lambda model, x: model(x),
    "autocast": lambda model, x: _under_autocast(model, x),
    "checkpoint": lambda model, x: checkpoint(model, x, use_reentrant=False),
    "compile": lambda model, x: torch.compile(model, backend="aot_eager", fullgraph=True)(x),
}


def _under_autocast(model, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        return model(x)


def gradients(model, x, way=WAYS["plain"]):
    """The output, after one backward of a loss that is not symmetric in it."""
    output = way(model, x)
    output.float().sin().sum().backward()
    return output.detach()


def pair(name):
    """(dense model, converted twin, input, selection)."""
    dense, x, selection = MODELS[name]()
    model = copy.deepcopy(dense)
    sft.convert(model, {"layer.weight": selection})
    return dense, model, x, selection


def values_of(model):
    (values,) = (p for n, p in model.named_parameters() if n.endswith("values"))
    return values


def wanted(dense, selection):
    grad = dense.layer.weight.grad
    return selection.gather(grad.reshape(sft.matrix_shape(dense, "layer.weight")))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lean", [False, True], ids=["", "lean"])
@pytest.mark.parametrize("name", MODELS)
def test_every_reader_sends_its_gradient(name, lean, way):
    torch._dynamo.reset()
    dense, model, x, selection = pair(name)
    if lean:
        sft.lean(model)
    exact = copy.deepcopy(dense)
    expected = gradients(dense, x, WAYS[way])
    torch.testing.assert_close(gradients(model, x, WAYS[way]), expected)
    if way != "autocast":
        torch.testing.assert_close(values_of(model).grad, wanted(dense, selection))
        return
    gradients(exact, x)
    exact = wanted(exact, selection)
    error, of_torch = (
        (grad - exact).norm() for grad in (values_of(model).grad, wanted(dense, selection))
    )
    assert error <= 2 * of_torch


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reaches_every_reader(name):
    dense, model, x, selection = pair(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            gradients(model, x)
            optimizer.step()
    trained = copy.deepcopy(model)
    sft.revert(model)
    shape = sft.matrix_shape(model, "layer.weight")
    moved = model.layer.weight.detach().reshape(shape) != dense.layer.weight.detach().reshape(shape)
    assert moved.any() and not (moved & ~selection.mask(shape)).any()
    with torch.no_grad():
        assert torch.equal(trained(x), model(x))


@pytest.mark.parametrize("name", MODELS)
def test_frozen_values_and_no_grad_hand_out_the_parameter(name):
    _, model, _, _ = pair(name)
    parameter = model.layer._parameters.get("weight")
    with torch.no_grad():
        assert model.layer.weight is parameter
    values_of(model).requires_grad_(False)
    assert model.layer.weight is parameter


@pytest.mark.parametrize("name", MODELS)
def test_a_read_weight_is_the_parameter_for_everything_else(name):
    dense, model, _, selection = pair(name)
    layer, values = model.layer, values_of(model)
    parameter, read = layer._parameters.get("weight"), layer.weight
    assert (
        isinstance(read, nn.Parameter)
        and read.requires_grad
        and not read.is_leaf
        and read.grad is None
    )
    assert torch.equal(read, dense.layer.weight) and read.data_ptr() == parameter.data_ptr()
    assert (read.shape, read.dtype, read.device) == (
        parameter.shape,
        parameter.dtype,
        parameter.device,
    )
    assert isinstance(model.get_parameter("layer.weight"), nn.Parameter)
    assert model.state_dict()["layer.weight"].data_ptr() == parameter.data_ptr()
    assert (
        dict(model.named_parameters())["layer.weight"] is parameter and not parameter.requires_grad
    )
    for twin in (copy.deepcopy(read), loaded(read)):
        assert type(twin) is nn.Parameter and twin.is_leaf and torch.equal(twin, read)
        assert twin.data_ptr() != parameter.data_ptr()
    other = nn.Parameter(read)
    assert isinstance(other, nn.Parameter) and other.is_leaf and other.requires_grad
    assert other.data_ptr() == parameter.data_ptr()
    for tensor in (
        read.detach(),
        read + 1,
        read[:1],
        read.clone(),
        read.data,
        loaded(read.detach()),
    ):
        assert not isinstance(tensor, nn.Parameter)
    assert not read.detach().requires_grad and type(copy.deepcopy(read.detach())) is torch.Tensor
    read.data.zero_()
    assert not parameter.any()
    fresh = torch.ones_like(parameter)
    layer.weight.data = fresh
    assert parameter.data_ptr() == fresh.data_ptr()
    values.data.fill_(1)
    sft.sync(model)
    assert layer.weight.requires_grad_(False) is not None and not values.requires_grad
    assert layer.weight is parameter


def loaded(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize(
    "write", [lambda w: nn.init.constant_(w, 7.0), lambda w: w.fill_(7.0)], ids=["init", "in place"]
)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_reaches_the_weight_and_values_stay_the_authority(name, write):
    _, model, _, selection = pair(name)
    before, shape = values_of(model).detach().clone(), sft.matrix_shape(model, "layer.weight")
    write(model.layer.weight)
    assert (model.layer._parameters.get("weight") == 7).all()
    with pytest.warns(
        UserWarning, match="layer.weight: selected entries were changed behind the module's back"
    ):
        matrix = model.layer.weight.detach().reshape(shape)
    assert torch.equal(selection.gather(matrix), before)
    assert (matrix[~selection.mask(shape)] == 7).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda m: pickle_of(m)], ids=["deepcopy", "pickle"]
)
def test_copies_read_their_own_weight(name, twin):
    dense, x, selection = MODELS[name]()
    product = getattr(dense, "product", None)
    if product is not None:
        dense.product = None  # a lambda
    model = copy.deepcopy(dense)
    sft.convert(model, {"layer.weight": selection})
    other = twin(model)
    for module in (dense, other):
        if product is not None:
            module.product = product
        gradients(module, x)
    assert values_of(model).grad is None
    torch.testing.assert_close(values_of(other).grad, wanted(dense, selection))


def pickle_of(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_functional_call_leaves_the_stored_parameters():
    model = DirectAndCalled(nn.Conv1d(4, 3, 2))
    dense = copy.deepcopy(model)
    sft.convert(model, {"layer.weight": sft.Rows([1])})
    stored = dict(model.named_parameters())
    given = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in stored.items()}
    torch.func.functional_call(model, given, (IMAGES,)).sin().sum().backward()
    gradients(dense, IMAGES)
    torch.testing.assert_close(
        given["layer.weight_selected.values"].grad, wanted(dense, sft.Rows([1]))
    )
    assert all(p is stored[name] for name, p in model.named_parameters())
    assert values_of(model).grad is None


def test_revert_leaves_an_ordinary_module():
    model = nn.Sequential(nn.Conv1d(4, 3, 2))
    stored = model[0].weight
    sft.convert(model, {"0.weight": sft.Rows([1]), "0.bias": sft.Entries([0])})
    sft.revert(model)
    assert type(model[0]._parameters) is dict
    assert model[0].weight is stored and stored.requires_grad


def test_a_bias_of_a_selective_layer_is_read_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, x):
            return (
                F.linear(x, self.layer.weight, self.layer.bias)
                + self.layer(x)
                + self.layer.forward(x)
            )

    dense = Net()
    model = copy.deepcopy(dense)
    plan = {"layer.weight": sft.Columns([1]), "layer.bias": sft.Entries([0, 4])}
    sft.convert(model, plan)
    assert torch.equal(gradients(model, X), gradients(dense, X))
    torch.testing.assert_close(
        model.layer.values.grad, plan["layer.weight"].gather(dense.layer.weight.grad)
    )
    torch.testing.assert_close(
        model.layer.bias_selected.values.grad,
        plan["layer.bias"].gather(dense.layer.bias.grad[None]),
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "kind", ["weight_norm", "spectral_norm", "l1_unstructured", "weight_norm of an LSTM"]
)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_pre_hook_that_computes_the_weight(kind, mode):
    """It reads the parameter before the module's forward, whichever hook comes first."""
    from torch.nn.utils import prune, spectral_norm, weight_norm

    name, make = {
        "weight_norm": ("0.weight_v", lambda: weight_norm(nn.Linear(4, 3))),
        "weight_norm of an LSTM": (
            "0.weight_hh_l0_v",
            lambda: weight_norm(nn.LSTM(4, 3), "weight_hh_l0"),
        ),
        "spectral_norm": ("0.weight_orig", lambda: spectral_norm(nn.Linear(4, 3))),
        "l1_unstructured": (
            "0.weight_orig",
            lambda: prune.l1_unstructured(nn.Linear(4, 3), "weight", 0.3),
        ),
    }[kind]
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(nn.Sequential(make()).train(mode == "train"))
    first = (lambda output: output[0]) if "LSTM" in kind else (lambda output: output)
    (model, dense), selection = models, sft.Entries([0, 1, 8])
    sft.convert(model, {name: selection})
    values = values_of(model)
    optimizers = torch.optim.SGD([values], lr=0.1), torch.optim.SGD(dense.parameters(), lr=0.1)
    for _ in range(2):
        outputs = first(model(X)), first(dense(X))
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.sin().sum().backward()
        grad = dense.get_parameter(name).grad
        torch.testing.assert_close(values.grad, selection.gather(grad))
        for parameter in dense.parameters():
            if parameter is dense.get_parameter(name):
                parameter.grad = torch.where(selection.mask(grad.shape), grad, 0)
            else:
                parameter.grad = None
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        torch.testing.assert_close(
            model.get_parameter(name).detach(), dense.get_parameter(name).detach()
        )
