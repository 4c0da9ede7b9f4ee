"""Bytes: a plan whose training step takes what was asked for, as torch's allocator saw it."""

import pytest
import torch

import sparse_ft as sft
from sparse_ft.memory.batch import batch_for
from sparse_ft.memory.budget import bytes_of

pytest.importorskip("transformers")
from helpers import wide_models  # noqa: E402
from helpers.measured_steps import measured  # noqa: E402

SHAPE = (4, 64)
PLANS = {  # model, structure, how far between the least and the most, settings
    "columns of BERT": ("BERT", "columns", 0.3, {}),
    "rows of Llama": ("Llama", "rows", 0.7, {}),
    "entries of GPT-2, globally": ("GPT-2", "entries", 0.5, {"scope": "global"}),
    "blocks of a lean Mistral": ("Mistral", "blocks", 0.3, {"block_size": 16}),
}


@pytest.mark.parametrize("plan", PLANS)
def test_measured_within_five_percent_and_never_over(plan):
    name, structure, share, settings = PLANS[plan]
    lean = "lean" in plan
    settings |= {"structure": structure, "score": "magnitude"}
    model = wide_models.wide(name)
    ends = []
    for density in (1e-5, 1.0):
        chosen = sft.select(model, density=density, **settings)
        ends.append(sft.estimate(model, chosen, *SHAPE, lean=lean).peak)
    asked = int(ends[0] + share * (ends[1] - ends[0]))

    budget = sft.Bytes(asked, batch_size=4, sequence_length=64, lean=lean)
    chosen = sft.select(model, budget=budget, **settings)
    _, peak = measured(model, chosen, batch_for(model, *SHAPE), lean)
    assert 0.95 * asked <= peak <= asked, (peak / asked, ends)


def test_what_trains_besides_counts():
    model = wide_models.wide("BERT")
    asked = sft.estimate(model, {"structure": "columns", "density": 0.2}, *SHAPE).peak
    settings = {"batch_size": 4, "sequence_length": 64}
    head = {"bert.embeddings.word_embeddings.weight": "all"}
    plain = sft.select(model, budget=sft.Bytes(asked, **settings), score="random")
    both = sft.select(model, budget=sft.Bytes(asked, also=head, **settings), score="random")
    entries = lambda plan: sum(s.nnz(s.matrix_shape) for s in plan.values())  # noqa: E731
    assert entries(both) < entries(plain) and plain.keys() == both.keys()


def test_more_than_all_and_less_than_the_least():
    model = wide_models.wide("BERT")
    plan = sft.select(model, budget=sft.Bytes("8GB", sequence_length=16), score="random")
    assert all(s.density(s.matrix_shape) == 1 for s in plan.values())
    with pytest.raises(ValueError, match="budget: the least that can train takes .*MiB, and Bytes"):
        sft.select(model, budget=sft.Bytes("1MB", sequence_length=16), score="random")


def test_gradients_are_taken_once():
    model = wide_models.wide("BERT")
    batch = {"input_ids": torch.randint(384, (2, 16)), "labels": torch.tensor([0, 1])}
    count = []

    def loss(model, batch):
        count.append(1)
        return model(**batch).loss

    asked = sft.estimate(model, {"structure": "columns", "density": 0.2}, *SHAPE).peak
    budget = sft.Bytes(asked, batch_size=4, sequence_length=64)
    plan = sft.select(model, budget=budget, score="gradient", batches=[batch], loss=loss)
    assert len(count) == 1 and len(plan) == 7


@pytest.mark.parametrize(
    "text, size",
    [("16GB", 16 * 10**9), ("512 MiB", 512 << 20), ("1.5k", 1500), ("8e9", 8 * 10**9), (7, 7)],
)
def test_sizes(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["much", "16XB", -3, 0, 1.5, None, "", True])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="size: expected bytes"):
        sft.Bytes(text)
