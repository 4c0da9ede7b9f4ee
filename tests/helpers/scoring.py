"""What `select` ranks by, as numbers to compare."""

import torch

import sparse_ft as sft
from sparse_ft.ranks import Ranks
from sparse_ft.salience.job import Batches, Job
from sparse_ft.salience.losses import checked
from sparse_ft.salience.ranking import source_of
from sparse_ft.salience.targets import targets_of
from sparse_ft.salience.units import Structure

NEAR = 1e-6  # relative to the largest score: transformers' losses cast logits to fp32


def scored(case, score, structure="entries", combine="sum", **settings):
    """{name: what `select` ranks by}: every entry [rows, columns], or every unit [units]."""
    score = sft.scores.as_score(score)
    job = Job(
        case.model,
        targets_of(case.model, case.targets).weights,
        Structure(structure, (5, 6), combine),
        Batches(case.batches, None),
        checked(settings.pop("loss", None), score.needs_batches and _per(score) == "example"),
        Ranks("test", False),
        **settings,
    )
    source = source_of(score, job)
    found = {}
    for name, values in source.scores():
        values = values.clone()
        if source.reduced:
            found[name] = values.abs() if source.absolute else values
        elif structure == "entries":
            found[name] = values.abs() if source.absolute else values
        else:
            found[name] = job.structure.judged(values, source.absolute)
    return found


def _per(score):
    return getattr(score, "per", "batch")


def assert_same(found, wanted, sizes=None):
    """sizes: what the numbers are made of, where they may cancel."""
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        size = (wanted if sizes is None else sizes)[name].abs().max()
        near = NEAR if values.dtype == torch.float64 else 100 * NEAR
        assert (found[name] - values).abs().max() <= near * size, name
        assert size > 0, name
