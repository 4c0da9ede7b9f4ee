"""transformers' Trainer and Lightning over two processes: DistributedDataParallel and FSDP2."""

import pytest
import torch
from helpers import ranks
from helpers import trainers_worker as worker
from helpers.exhaustive import slow
from helpers.masters_worker import PLAN

import sparse_ft as sft

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytest.importorskip("transformers")

pytestmark = slow  # to import them all takes half a minute


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainers")
    ranks.start_forked(worker.__file__, folder, world=2)
    return ranks.results(folder)


@pytest.mark.parametrize("name", worker.TRAINERS)
def test_two_processes_train_as_one(name, results, tmp_path):
    alone = worker.alone(name, str(tmp_path))
    born = sft.revert(worker.net()).state_dict()
    for rank in results:
        assert rank[name].keys() == alone.keys()
        for key, want in alone.items():
            assert (rank[name][key] - want).abs().max() <= 1e-6, key
        for key in PLAN:
            assert not torch.equal(rank[name][key], born[key]), key
