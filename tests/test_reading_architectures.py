"""Architectures that read weights by attribute, or work in place on what a layer gives, train as
they do dense.
"""

import pytest
from helpers import dense_twin

pytest.importorskip("transformers")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

from helpers.reading_architectures import READING, build  # noqa: E402

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", READING)
def test_an_architecture_trains_as_dense(name, training):
    model, inputs = build(name)
    for turn in range(4):
        dense_twin.assert_trains_as_dense(model, inputs, dense_twin.plan_of(model, turn), training)


@pytest.mark.parametrize("name", READING)
def test_every_selected_parameter_gets_a_gradient(name):
    model, inputs = build(name)
    plan = dense_twin.plan_of(model)
    dense = dense_twin.dense_of(model, plan)
    dense_twin.backward(dense, inputs)
    idle = [name for name in plan if dense.get_parameter(name).grad is None]
    assert not idle, "the model is no measure: dense has none either"
