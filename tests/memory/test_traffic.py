"""Bytes that a step moves between devices: what was told against what was counted."""

import pytest
import torch
from helpers import ranks, traffic_worker

import sparse_ft as sft

needs_gloo = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
WORLDS = 2, 4


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """{(strategy, structure, world size): {collective: bytes}} of each rank."""
    folder = tmp_path_factory.mktemp("traffic")
    ranks.start_forked(traffic_worker.__file__, folder, world=4)
    return ranks.results(folder, world=4)


@pytest.fixture(scope="module")
def told():
    """{structure: what one device would move}."""
    found = {}
    for structure in traffic_worker.STRUCTURES:
        model = traffic_worker.net()
        plan, inputs = traffic_worker.plan_of(model, structure), {"tokens": traffic_worker.batch()}
        found[structure] = sft.estimate(model, plan, inputs=inputs, world_size=2).traffic
    return found


@needs_gloo
@pytest.mark.parametrize("strategy", traffic_worker.STRATEGIES)
@pytest.mark.parametrize("structure", traffic_worker.STRUCTURES)
@pytest.mark.parametrize("world", WORLDS)
def test_what_is_told_is_what_is_counted(strategy, structure, world, told, counted):
    want = {}
    for message in told[structure].on(world, strategy).messages:
        want[message.collective] = want.get(message.collective, 0) + message.bytes
    for rank in counted:
        assert rank[strategy, structure, world] == want


@pytest.mark.parametrize(
    "asked, message",
    [
        (dict(world_size=0), "world_size: expected a positive integer, got 0"),
        (dict(world_size=2, strategy="fsdp"), "strategy: expected one of 'ddp', 'fsdp2', .*'fsdp'"),
        (
            dict(world_size=2, strategy="tensor_parallel"),
            "'tensor_parallel': Linear has no tp_plan",
        ),
    ],
    ids=["world_size", "strategy", "no plan"],
)
def test_what_is_not_known_is_refused_by_name(asked, message):
    with pytest.raises(ValueError, match=message):
        sft.estimate(torch.nn.Linear(2, 2), inputs={"input": torch.ones(1, 2)}, **asked)


def test_one_device_sends_nothing_and_it_is_told_in_print(told):
    traffic = told["rows"].on(1, "fsdp2")
    assert traffic.sent == 0
    text = str(told["rows"].on(4, "fsdp2"))
    assert "after the step  values" in text
    assert text.splitlines()[-1].startswith("fsdp2 on 4 devices: each sends ")
