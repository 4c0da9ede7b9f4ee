"""Many architectures of transformers and torchvision, every parameter of theirs selected, train as
they do dense.
"""

import pytest
from helpers import dense_twin

torchvision = pytest.importorskip("torchvision")

from helpers.many_architectures import MANY, build  # noqa: E402

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize("name", MANY)
def test_an_architecture_trains_as_dense(name):
    model, inputs = build(name)
    for turn, training in ((0, True), (1, False)):
        dense_twin.assert_trains_as_dense(model, inputs, dense_twin.plan_of(model, turn), training)


@pytest.mark.parametrize("name", MANY)
def test_a_lean_architecture_is_as_exact_as_dense(name):
    model, inputs = build(name)
    dense_twin.assert_lean_is_as_exact(model, inputs, dense_twin.plan_of(model, 2))
