"""Rotate below DistributedDataParallel, two processes over gloo."""

import pytest
import torch
from helpers import ranks, rotate_worker

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rotate")
    ranks.start(rotate_worker.__file__, folder)
    return ranks.results(folder)


def test_two_ranks_train_as_one_with_the_joint_batch(results):
    joint, before = rotate_worker.net(), rotate_worker.net()
    seen = rotate_worker.train(joint, joint)
    assert len({label for window in seen for label in window}) > 2
    for name, want in joint.named_parameters():
        torch.testing.assert_close(results[0]["weights"][name], want.detach(), rtol=0, atol=1e-12)
        assert torch.equal(results[0]["weights"][name], results[1]["weights"][name])
    changed = [
        n for n, p in before.named_parameters() if not torch.equal(p, joint.get_parameter(n))
    ]
    assert len(changed) > 3
    assert all(result["seen"] == seen for result in results)


def test_what_would_wait_for_ever_is_refused_and_what_comes_first_is_said(results):
    for result in results:
        plain, static, alone = result["said"]
        assert "find_unused_parameters=True" in plain and "static_graph" in static
        assert "make it first, and attach to what" in alone
