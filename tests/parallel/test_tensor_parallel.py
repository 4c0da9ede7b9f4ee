"""Models that tensor parallel has cut, over two ranks of four, against one process."""

import pytest
import torch
from helpers import ranks
from helpers import tensor_parallel_worker as worker

import sparse_ft as sft

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank left behind."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    ranks.start_forked(worker.__file__, folder, world=4)
    return ranks.results(folder, world=4)


@pytest.mark.parametrize("case", worker.CASES)
def test_trains_as_one_process(case, results):
    how, name, optimizer = worker.CASES[case]
    alone = worker.net()
    sft.convert(alone, worker.PLANS[name]())
    want = worker.run(alone, optimizer)
    born = worker.net().state_dict()
    for result in results:
        if how is not worker.on_both_dimensions:
            assert result[case]["losses"] == pytest.approx(want["losses"], abs=1e-6)
        for key, weight in want["weights"].items():
            assert (result[case]["weights"][key] - weight).abs().max() <= 1e-6, key
        for key in worker.PLANS[name]():
            assert not torch.equal(result[case]["weights"][key], born[key]), key


@pytest.mark.parametrize("name", worker.PLANS)
def test_revert_gives_the_weights_back_as_they_are(name, results):
    for result in results:
        for key, weight in result[name]["reverted"].items():
            assert torch.equal(weight, result[name]["weights"][key]), key


@pytest.mark.parametrize(
    "name, trained",
    [
        ("state", "trained"),
        ("weights", "trained"),
        ("state on both", "trained on both"),
        ("weights on both", "trained on both"),
    ],
)
def test_what_is_loaded_is_what_was_saved(name, trained, results):
    """With the values, and with weights alone, from which they are read."""
    for result in results:
        loaded, saved = result["loaded"][name], result["loaded"][trained]
        assert loaded.keys() == saved.keys()
        for key, tensor in saved.items():
            assert torch.equal(loaded[key], tensor), key
