"""Random training runs, each beside dense masked training.

Architecture, plan, lean, dtype, optimiser, events and all.

SPARSE_FT_DIFFERENTIAL=N,SEED runs the cases SEED to SEED + N - 1 instead of the first 400.
"""

import os

import pytest
import torch

import sparse_ft as sft
from differential.case import Choice, draw
from differential.compare import Refused, failure
from differential.events import EVENTS
from differential.minimise import minimised, program
from differential.models import MODELS
from differential.optimizers import OPTIMIZERS

NUMBER, FIRST = map(int, os.environ.get("SPARSE_FT_DIFFERENTIAL", "400,0").split(","))
TOGETHER = 25  # cases of one test


def explained(case):
    """None, or what a case breaks, with a small program that shows it."""
    if failure(case) is None:
        return None
    small, found = minimised(case)
    return f"{found}\n\n{program(small)}"


@pytest.mark.parametrize("first", range(FIRST, FIRST + NUMBER, TOGETHER))
def test_a_random_run_is_the_dense_run(first):
    refused = 0
    for seed in range(first, min(first + TOGETHER, FIRST + NUMBER)):
        try:
            found = explained(draw(seed))
        except Refused:
            refused += 1
            continue
        assert found is None, f"case {seed} (SPARSE_FT_DIFFERENTIAL=1,{seed}): {found}"
    assert refused < 0.4 * TOGETHER, "most of what is drawn should be something that torch runs"


def test_cases_are_of_every_kind():
    cases = [draw(seed) for seed in range(400)]
    assert {case.optimizer for case in cases} == set(OPTIMIZERS)
    assert {event.kind for case in cases for event in case.events} == set(EVENTS)
    assert {choice.kind for case in cases for choice in case.plan.values()} == {
        "rows",
        "columns",
        "blocks",
        "entries",
        "all",
    }
    assert {case.network.data for case in cases} == {
        "features",
        "sequence",
        "tokens",
        "images",
        *MODELS,
    }


def test_a_planted_fault_is_found_and_made_small(monkeypatch):
    """Weights that do not follow what an optimiser of torch's writes."""
    monkeypatch.setattr(sft.nn.Selected, "after_step", lambda *_: None)
    cases = (draw(seed) for seed in range(400))
    failing = next(case for case in cases if fails(case))
    small, found = minimised(failing, seconds=600)  # it takes two, on a quiet machine
    assert found and len(small.plan) <= 2 and len(small.network.layers) <= 2
    assert (
        small.lean is None
        and not small.autocast
        and small.accumulate == 1
        and small.dtype == "fp64"
    )
    monkeypatch.undo()
    assert failure(small) is None


def fails(case):
    try:
        return case.network.layers and failure(case)
    except Refused:
        return False


def test_what_is_printed_is_a_program(capsys):
    exec(program(draw(3)), {})
    assert capsys.readouterr().out == "None\n"


def test_a_choice_fits_any_matrix():
    for kind in ("rows", "columns", "blocks", "entries"):
        for shape in ((1, 1), (1, 7), (5, 4)):
            for share in (0.0, 0.5, 1.0):
                mask = Choice(kind, share).on(shape).mask(shape)
                assert (
                    mask.shape == torch.Size(shape) and mask.any() and (share < 1.0 or mask.all())
                )
