"""Of the fixture `made_on_device`: what a test makes is moved, what the library makes is not.

On the device "meta", which every machine has.
"""

import pytest
import torch
from helpers.devices import MadeByTests, moved_to
from torch import nn

import sparse_ft as sft

META = torch.device("meta")
TOP = {"of the file": [torch.zeros(2)]}


def test_what_a_test_makes_is_on_the_device_and_what_the_library_makes_is_not():
    with MadeByTests(META):
        made, layer, given = torch.ones(3), nn.Linear(4, 4), torch.ones(3, device="cpu")
        selection = sft.Rows([1, 2])
    assert made.is_meta and layer.weight.is_meta and not given.is_meta
    assert not selection.index.is_meta
    assert not torch.ones(3).is_meta


def test_numbers_of_a_generator_of_the_cpu_are_moved():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    with MadeByTests(META):
        drawn = torch.randn(3, generator=generator), torch.randint(6, (2,), generator=generator)
    assert all(numbers.is_meta for numbers in drawn)
    assert not torch.equal(generator.get_state(), before)


def test_random_numbers_are_those_of_the_cpu():
    """Whoever draws: after a model and a batch the CPU's generator is where it would be."""

    def draw():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        nn.init.xavier_normal_(layer.weight)
        return layer, torch.rand(3, requires_grad=True), torch.get_rng_state()

    _, _, expected = draw()
    with MadeByTests(META):
        layer, drawn, state = draw()
    assert layer.weight.is_meta and drawn.is_meta and drawn.requires_grad and drawn.is_leaf
    assert torch.equal(state, expected)


@pytest.mark.parametrize("given", [(torch.ones(2), "text")], ids=["tensor"])
def test_tensors_of_the_file_and_of_parameters_are_moved_and_come_back(given, request):
    with pytest.MonkeyPatch.context() as patch, moved_to(META, request, patch):
        assert TOP["of the file"][0].is_meta
        moved, text = request.node.callspec.params["given"]
        assert moved.is_meta and text == "text"
    assert not TOP["of the file"][0].is_meta and not given[0].is_meta
