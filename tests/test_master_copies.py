"""Optimisers that step copies, in two processes.

DeepSpeed's ZeRO-1 and 2, and the loop they are made of, against one process.
"""

import importlib.util

import pytest
import torch
from helpers import masters_worker, ranks

import sparse_ft as sft

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What every way that can be had here left, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("masters")
    ways = ["masters", *(["1", "2", "3"] if importlib.util.find_spec("deepspeed") else [])]
    ranks.start_forked(masters_worker.__file__, folder, *ways, world=2)
    return folder


@pytest.mark.parametrize(
    "way",
    ["masters", pytest.param("1", marks=needs_deepspeed), pytest.param("2", marks=needs_deepspeed)],
)
def test_two_processes_train_as_one(way, folder):
    alone = masters_worker.net()
    masters_worker.in_one_process(alone)
    first, second = ranks.results(folder / way)
    born = sft.revert(masters_worker.net()).state_dict()
    for name, want in sft.revert(alone).state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - want).abs().max() <= 1e-6, name
        assert (name in masters_worker.PLAN) == (not torch.equal(first[name], born[name])), name


@needs_deepspeed
def test_zero_3_is_refused_by_name(folder):
    """Its parameters are released between forward and backward."""
    for said in ranks.results(folder / "3"):
        assert "0.bias: taken over by DeepSpeed's ZeRO-3" in said and "ZeRO-1 or 2" in said
