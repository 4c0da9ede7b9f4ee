"""Two processes score by the batches of both, and choose alike."""

import pytest
import torch
from helpers import ranks, scores_worker

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """[what rank 0 chose, what rank 1 chose], by label."""
    folder = tmp_path_factory.mktemp("scores")
    ranks.start(scores_worker.__file__, folder)
    return ranks.results(folder)


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name] == b[name] if isinstance(a[name], str) else torch.equal(a[name], b[name])
        for name in a
    )


@pytest.mark.parametrize("label", scores_worker.CHOICES)
def test_all_batches_of_all_ranks_count(results, label):
    first, second = (result[label] for result in results)
    assert same(first, second)
    if label != "sensitivity":  # a moving average has an order: the ranks' are averaged
        batches = scores_worker.share(0) + scores_worker.share(1)
        assert same(first, scores_worker.choose(batches, **scores_worker.CHOICES[label]))


def test_the_seed_decides_between_equal_scores_on_all(results):
    assert same(results[0]["ties"], results[1]["ties"])


def test_an_error_in_a_later_pass_is_told_to_all(results):
    assert results[1]["second pass"] == "ArithmeticError: of rank 1"
    assert "rank 1 failed" in results[0]["second pass"]
    assert "of rank 1" in results[0]["second pass"]
