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


@pytest.mark.parametrize(
    "how",
    ["masters", pytest.param("1", marks=needs_deepspeed), pytest.param("2", marks=needs_deepspeed)],
)
def test_two_processes_train_as_one(how, tmp_path):
    ranks.start(masters_worker.__file__, tmp_path, how)
    alone = masters_worker.net()
    masters_worker.in_one_process(alone)
    first, second = ranks.results(tmp_path)
    born = sft.revert(masters_worker.net()).state_dict()
    for name, want in sft.revert(alone).state_dict().items():
        assert torch.equal(first[name], second[name]), name
        assert (first[name] - want).abs().max() <= 1e-6, name
        assert (name in masters_worker.PLAN) == (not torch.equal(first[name], born[name])), name


@needs_deepspeed
def test_zero_3_is_refused_by_name(tmp_path):
    """Its parameters are released between forward and backward."""
    ranks.start(masters_worker.__file__, tmp_path, "3")
    for said in ranks.results(tmp_path):
        assert "0.bias: taken over by DeepSpeed's ZeRO-3" in said and "ZeRO-1 or 2" in said
