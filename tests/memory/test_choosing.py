"""What `estimate` tells of choosing, against what torch's allocator sees `sft.select` take."""

import pytest
from helpers.allocations import allocated_by

import sparse_ft as sft
from sparse_ft.memory.batch import batch_for

pytest.importorskip("transformers")
from helpers import wide_models  # noqa: E402

SHAPE = (4, 64)
ENTRIES, COLUMNS = {"structure": "entries"}, {"structure": "columns"}
BLOCKS = {"structure": "blocks", "block_size": 16}
RECOMPUTE, PASSES = {"recompute": True}, {"recompute": True, "accumulate": "passes", "passes": 4}
WAYS = [
    ("gradient", COLUMNS),
    ("gradient", {**COLUMNS, **RECOMPUTE, "combine": "abs_of_sum"}),
    ("gradient", {**ENTRIES, **PASSES}),
    ("fisher", {**ENTRIES, **RECOMPUTE}),
    ("taylor", {**BLOCKS, **RECOMPUTE}),
    ("sensitivity", ENTRIES),
    ("synflow", ENTRIES),
    ("principal", COLUMNS),
    ("activation", COLUMNS),
]


def bytes_of(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.fixture(scope="module")
def models():
    return {name: wide_models.wide(name) for name in ("Llama", "BERT")}


CASES = [("Llama", *way) for way in WAYS] + [("BERT", *WAYS[1])]


@pytest.mark.parametrize("name, score, settings", CASES, ids=str)
def test_within_five_percent_of_the_allocator(name, score, settings, models, tmp_path):
    model, plan = models[name], {"density": 0.01, "score": score, **settings}
    told = sft.estimate(model, plan, *SHAPE)
    batches = [batch_for(model, *SHAPE)]
    given = {"batches": batches} if sft.scores.as_score(score).needs_batches else {}
    taken = allocated_by(lambda: sft.select(model, **plan, **given), tmp_path).most
    assert told.choosing - bytes_of(model) == pytest.approx(taken, rel=0.05)
    assert "most while choosing, once" in str(told)


def test_with_recompute_and_passes_choosing_takes_less_than_training():
    """No accumulator of all targets, no layer's activations but one's: two numbers an entry."""
    config = wide_models.tf.LlamaConfig(**{**wide_models.DECODER, "num_hidden_layers": 5})
    plan = {"density": 0.01, "score": "sensitivity", **ENTRIES, **PASSES}
    told = sft.estimate(config, plan, *SHAPE)
    assert told.choosing < told.peak


def test_a_plan_that_says_no_score_has_none(models):
    told = sft.estimate(models["BERT"], {"density": 0.01}, *SHAPE)
    assert told.choosing == 0 and "choosing" not in str(told)


def test_what_does_not_fit_is_named(models):
    with pytest.raises(ValueError, match="score: expected .* did you mean 'gradient'"):
        sft.estimate(models["BERT"], {"score": "gradeint"}, *SHAPE)
