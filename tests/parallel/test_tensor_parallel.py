"""Models that tensor parallel has cut, over two ranks of four, against one process."""

import pytest
import torch
from helpers import ranks, tensor_parallel_worker

import sparse_ft as sft

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank left behind."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    ranks.start_forked(tensor_parallel_worker.__file__, folder, world=4)
    return ranks.results(folder, world=4)


@pytest.mark.parametrize("name", tensor_parallel_worker.PLANS)
def test_trains_as_one_process(name, results):
    alone = tensor_parallel_worker.net()
    sft.convert(alone, tensor_parallel_worker.PLANS[name]())
    optimizer = tensor_parallel_worker.adamw(tensor_parallel_worker.trained(alone))
    losses = tensor_parallel_worker.train(alone, optimizer)
    want = sft.revert(alone).state_dict()
    for result in results:
        assert result[name]["losses"] == pytest.approx(losses, abs=1e-6)
        for key, weight in want.items():
            assert (result[name]["weights"][key] - weight).abs().max() <= 1e-6, key
            assert torch.equal(result[name]["weights"][key], result[name]["reverted"][key]), key
