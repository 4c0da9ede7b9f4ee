"""reselect below DistributedDataParallel, two processes over gloo."""

import pytest
import torch
from helpers import ranks, reselect_worker
from helpers.reselected import net, plan_of

import sparse_ft as sft

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reselect")
    ranks.start(reselect_worker.__file__, folder)
    return ranks.results(folder)


def test_two_ranks_train_as_one_with_the_joint_batch(results):
    joint = net(torch.float64)
    sft.convert(joint, plan_of(0))
    reselect_worker.train(joint, joint)
    for name, want in joint.named_parameters():
        torch.testing.assert_close(results[0]["kept"][name], want.detach(), rtol=0, atol=1e-12)
        assert torch.equal(results[0]["kept"][name], results[1]["kept"][name])


def test_other_counts_and_plans_that_differ_are_refused_on_every_rank(results):
    for result in results:
        counts, plans = result["said"]
        assert "'embed.weight'" in counts or "embed.weight: as many values as before" in counts
        assert "differs between ranks" in plans
        assert all(
            torch.equal(result["kept"][name], result["after"][name]) for name in result["kept"]
        )
