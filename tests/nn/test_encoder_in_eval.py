"""torch's transformer layers in eval mode with gradients on.

The inference path is not for weights that train.
"""

import copy

import pytest
import torch
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

WIDTH, WIDE = 8, 16
ENCODER_LAYER = dict(d_model=WIDTH, nhead=2, dim_feedforward=WIDE, batch_first=True)
PADDED = torch.tensor([[False, False, False], [False, False, True]])


class Encoder(nn.Module):
    def __init__(self, nested, norm_first=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(**ENCODER_LAYER, norm_first=norm_first)
        self.emb = nn.Embedding(10, WIDTH)
        self.enc = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, x):
        return self.enc(self.emb(x), src_key_padding_mask=PADDED).masked_fill(PADDED[..., None], 0)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, WIDTH)
        self.layer = nn.TransformerEncoderLayer(**ENCODER_LAYER)

    def forward(self, x):
        return self.layer(self.emb(x))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, WIDTH)
        self.layer = nn.TransformerDecoderLayer(**ENCODER_LAYER)

    def forward(self, x):
        return self.layer(self.emb(x), self.emb(x.flip(1)))


class Attention(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.emb = nn.Embedding(10, WIDTH)
        self.mha = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.weights = weights

    def forward(self, x):
        x = self.emb(x)
        return self.mha(x, x, x, need_weights=self.weights)[0]


MODELS = {
    "encoder": lambda: Encoder(nested=False),
    "encoder, norm first": lambda: Encoder(nested=False, norm_first=True),
    "encoder, nested": lambda: Encoder(nested=True),
    "layer": Layer,
    "decoder": Decoder,
    "attention": lambda: Attention(weights=False),
    "attention with weights": lambda: Attention(weights=True),
}
TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def selection_of(name, shape):
    rows, columns = shape
    if rows == 1:
        return sft.Entries([0, columns - 1])
    return sft.Columns([1, columns - 1]) if "linear2" in name else sft.Rows([0, rows - 1])


def plan_of(model, names):
    return {name: selection_of(name, sft.matrix_shape(model, name)) for name in names}


def parameters_of(make):
    return [name for name, _ in make().named_parameters()]


EACH = [(kind, name) for kind, make in MODELS.items() for name in parameters_of(make)]
# torch turns to nested tensors where nothing that it looks at in the first layer trains, as in the
# dense model whose other weights are frozen. Attention then raises, in both.
NESTED = [(kind, name) for kind, name in EACH if kind == "encoder, nested" and "layers.1" in name]


def train_once(model):
    model(TOKENS).sin().sum().backward()


def compare(model, dense, plan):
    train_once(model)
    train_once(dense)
    for name, selection in plan.items():
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        values = (
            owner.get_submodule(f"{attribute}_selected").values
            if hasattr(owner, f"{attribute}_selected")
            else owner.values
        )
        grad = dense.get_parameter(name).grad.reshape(sft.matrix_shape(dense, name))
        torch.testing.assert_close(
            values.grad, selection.gather(grad), msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind, name", [case for case in EACH if case not in NESTED])
def test_one_selected_parameter_gets_its_gradient(kind, name, mode):
    dense = MODELS[kind]().train(mode == "train")
    for module in dense.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    model = copy.deepcopy(dense)
    plan = plan_of(dense, [name])
    sft.convert(model, plan)
    compare(model, dense, plan)


@pytest.mark.parametrize("kind", MODELS)
def test_all_selected_parameters_get_their_gradient_in_eval(kind):
    dense = MODELS[kind]().eval()
    model = copy.deepcopy(dense)
    plan = plan_of(dense, parameters_of(MODELS[kind]))
    sft.convert(model, plan)
    compare(model, dense, plan)


@pytest.mark.parametrize("kind", MODELS)
def test_inference_shows_the_trained_values(kind):
    """torch's inference path reads the weights without calling the layers that hold them."""
    model = MODELS[kind]().eval()
    sft.convert(
        model, plan_of(model, [n for n in parameters_of(MODELS[kind]) if n != "emb.weight"])
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    train_once(model)
    optimizer.step()
    with torch.no_grad():
        ours = model(TOKENS)
        sft.revert(model)
        # Our hooks make torch call each layer: other bits.
        torch.testing.assert_close(ours, model(TOKENS))


@pytest.mark.parametrize("kind, name", NESTED)
def test_a_plan_that_torch_serves_by_nested_tensors(kind, name):
    dense = MODELS[kind]().eval()
    model = copy.deepcopy(dense)
    plan = plan_of(dense, [name])
    sft.convert(model, plan)
    frozen = copy.deepcopy(dense).requires_grad_(False)
    frozen.get_parameter(name).requires_grad_(True)
    try:
        frozen(TOKENS)
    except AssertionError as error:
        assert "does not support NestedTensor outside of its fast path" in str(error)
        with pytest.raises(
            AssertionError, match="does not support NestedTensor outside of its fast path"
        ):
            train_once(model)
        return
    torch.testing.assert_close(model(TOKENS), frozen(TOKENS))
    compare(model, frozen, plan)
