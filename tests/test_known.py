"""Facts about tensors: found by the tensor as it is, held by somebody else, without a bound."""

import copy
import weakref

import pytest
import torch

from sparse_ft.known import FEWEST, Known


class Box:
    """Something that can be referred to weakly."""


@pytest.fixture
def known():
    return Known()


def test_a_fact_is_of_one_tensor_as_it_is(known):
    tensor, fact = torch.zeros(3), Box()
    known.tell(tensor, fact)
    assert known.of(tensor) is fact
    for other in (tensor.view(3), tensor.detach(), copy.deepcopy(tensor), torch.zeros(3)):
        assert known.of(other) is None
    assert known.of(tensor, "something else") is None
    tensor.add_(1)
    assert known.of(tensor) is None


def test_nothing_is_kept_alive(known):
    tensor, fact = torch.zeros(3), Box()
    known.tell(tensor, fact)
    watched = weakref.ref(tensor), weakref.ref(fact)
    del fact
    assert known.of(tensor) is None and not known.alive()
    del tensor
    assert [each() for each in watched] == [None, None]


def test_what_is_said_of_two_tensors_ends_with_both(known):
    """Also where another tensor gets the address of one that is gone."""
    tensor, fact = torch.zeros(3), Box()
    for _ in range(100):
        other = torch.zeros(2)
        assert known.of(tensor, weakref.ref(other)) is None
        known.tell(tensor, fact, weakref.ref(other))
        assert known.of(tensor, weakref.ref(other)) is fact
        del other


def test_any_number_is_known_and_the_dead_are_dropped(known):
    tensors = [torch.zeros(1) for _ in range(5 * FEWEST)]
    fact = Box()
    for tensor in tensors:
        known.tell(tensor, fact)
    assert all(known.of(tensor) is fact for tensor in tensors)
    for _ in range(20 * FEWEST):
        known.tell(torch.zeros(1), Box())
    assert len(known.facts) <= 2 * len(tensors) + 1
    assert all(known.of(tensor) is fact for tensor in tensors)


def test_a_tensor_without_a_version_is_refused(known):
    with torch.inference_mode():
        tensor = torch.zeros(3)
    with pytest.raises(RuntimeError, match="[Ii]nference"):
        known.tell(tensor, Box())
    assert known.of(tensor) is None
