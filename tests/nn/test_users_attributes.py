"""What a user keeps on a layer under names that the library has a use for stays there."""

import copy
import io

import pytest
import torch
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

NAMES = (
    "label", "selection", "matrix_shape", "input_dim", "chosen_dtype", "shown", "held", "tracked",
    "part", "reported", "original",
    "_label", "_selection", "_matrix_shape", "_chosen_dtype", "_shown", "_held", "_tracked",
    "_part", "_reported", "_original",
    "owner", "name", "reader",
)  # fmt: skip
PLANS = {
    "linear": lambda: (nn.Linear(4, 3), sft.Columns([1])),
    "embedding": lambda: (nn.Embedding(5, 4), sft.Rows([1, 2])),
    "convolution": lambda: (nn.Conv1d(4, 3, 2), sft.Rows([1])),
}


def pickled(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.fixture(params=PLANS)
def model(request):
    layer, selection = PLANS[request.param]()
    for name in NAMES:
        setattr(layer, name, f"the user's {name}")
    model = nn.Sequential(layer)
    sft.convert(model, {"0.weight": selection})
    return model


def train(model):
    layer = model[0]
    numbers = torch.tensor([0, 1, 2]) if isinstance(layer, nn.Embedding) else torch.randn(2, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(numbers).square().sum().backward()
    values = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in values]
    optimizer.step()
    assert all(not torch.equal(p, was) for p, was in zip(values, before))


def assert_kept(model):
    for name in NAMES:
        assert getattr(model[0], name) == f"the user's {name}"
        assert model[0].__dict__[name] == f"the user's {name}"


@pytest.mark.parametrize(
    "twin", [lambda m: m, copy.deepcopy, pickled], ids=["itself", "deepcopy", "pickle"]
)
def test_attributes_are_there_while_converted_and_after_revert(model, twin):
    model = twin(model)
    assert_kept(model)
    train(model)
    model.double().float()
    model.load_state_dict(model.state_dict())
    assert_kept(model)
    sft.revert(model)
    assert_kept(model)
    assert set(model[0].__dict__) - set(NAMES) == set(ATTRIBUTES[type(model[0])])


ATTRIBUTES = {type(make()[0]): make()[0].__dict__ for make in PLANS.values()}


def test_a_layer_without_such_attributes_shows_the_selection():
    model = nn.Sequential(nn.Linear(4, 3))
    selection = sft.Columns([1])
    sft.convert(model, {"0.weight": selection})
    assert model[0].selection == selection
    assert model[0].matrix_shape == (3, 4)
    assert model[0].label == "0.weight"
    assert len(set(model[0].__dict__) - set(nn.Linear(4, 3).__dict__)) == 1
    sft.revert(model)
    assert not hasattr(model[0], "selection")
    assert set(model[0].__dict__) == set(nn.Linear(4, 3).__dict__)


def test_an_attribute_of_the_layer_that_is_set_while_converted_stays_its_own():
    model = nn.Sequential(nn.Linear(4, 3))
    sft.convert(model, {"0.weight": sft.Columns([1])})
    model[0].selection = "the user's"
    train(model)
    sft.revert(model)
    assert model[0].selection == "the user's"
