"""Two processes choose and convert: by the gradients of both, alike, or with an error on both."""

import re

import pytest
import torch
from helpers import plans_worker, ranks

import sparse_ft as sft

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """[what rank 0 saw, what rank 1 saw], by name."""
    folder = tmp_path_factory.mktemp("plans")
    ranks.start(plans_worker.__file__, folder)
    return ranks.results(folder)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_model_comes_out(results):
    first, second = (result["trained"] for result in results)
    assert same(first, second)


def test_all_batches_of_all_ranks_count(results):
    """Three batches, one on rank 0 and two on rank 1, are ranked as in one process."""
    batches = plans_worker.share(0) + plans_worker.share(1)
    alone = plans_worker.indices(plans_worker.choose(0, batches=batches))
    assert same(results[0]["chosen"], alone) and same(results[1]["chosen"], alone)
    assert not same(results[0]["chosen alone"], results[1]["chosen alone"])
    assert same(results[1]["chosen alone"], plans_worker.indices(plans_worker.choose(1)))
    of_second = plans_worker.indices(plans_worker.choose(1, batches=plans_worker.share(1)[:1]))
    assert same(results[0]["no batches on rank 0"], of_second)


def test_a_weight_that_one_rank_does_not_reach(results):
    assert same(results[0]["experts"], results[1]["experts"])


@pytest.mark.parametrize(
    "what, message",
    [
        ("no batches at all", "ValueError: batches: expected at least one batch"),
        ("other targets", "RuntimeError: sft.select: '0.weight' differs between ranks"),
        (
            "one selects, one converts",
            "RuntimeError: sft.(select|convert): rank . is in sft.(select|convert) meanwhile",
        ),
    ],
)
def test_an_error_of_both(results, what, message):
    for result in results:
        assert re.match(message, result[what]), result[what]


@pytest.mark.parametrize(
    "what, own",
    [
        ("loss fails on rank 1", "ZeroDivisionError"),
        ("density fails on rank 1", "ValueError: density"),
    ],
)
def test_an_error_of_one_is_an_error_of_both(results, what, own):
    first, second = (result[what] for result in results)
    assert second.startswith(own)
    assert first.startswith(
        f"RuntimeError: sft.select: rank 1 failed, so this one stops too: {own}"
    )


@pytest.mark.parametrize(
    "what, message",
    [
        (
            "other plan",
            (
                "'0.weight' differs between ranks: Rows(2 selected, up to 5) on rank 0 and Rows(2"
                " selected"
            ),
        ),
        (
            "other names",
            (
                "'0.weight' differs between ranks: Rows(1 selected, up to 1) on rank 0 and not in"
                " it on rank 1"
            ),
        ),
        (
            "other dtype",
            "'values_dtype' differs between ranks: None on rank 0 and torch.float64 on rank 1",
        ),
    ],
)
def test_plans_that_differ_are_refused_on_both_and_nothing_changes(results, what, message):
    for result in results:
        error, as_it_was = result[what]
        assert error.startswith(f"RuntimeError: sft.convert: {message}") and as_it_was


def test_a_convert_that_fails_on_one_rank(results):
    (first, first_whole), (second, second_whole) = (result["rank 1 fails"] for result in results)
    assert second.startswith("IndexError: plan: '0.weight'") and first_whole and second_whole
    assert first.startswith(
        "RuntimeError: sft.convert: rank 1 failed, so this one stops too: IndexError: plan:"
        " '0.weight'"
    )


def test_a_process_by_itself(results):
    for result in results:
        assert [result[what] for what in ("by itself", "only rank 0", "group of one")] == [""] * 3
    assert results[0]["no group"].startswith(
        "TypeError: process_group: expected None, False or a ProcessGroup"
    )


def test_who_waits_says_so(results):
    assert any(
        "sft.convert: waiting for the other 1 processes" in said for said in results[0]["late"]
    )
    assert not results[1]["late"]


def test_a_launcher_whose_processes_do_not_know_of_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="WORLD_SIZE=2 .* init_process_group"):
        plans_worker.choose(0)
    model = plans_worker.net()
    sft.convert(model, {"0.weight": sft.Rows([1])})
