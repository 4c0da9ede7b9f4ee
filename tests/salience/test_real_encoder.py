"""Scores and budgets on the real weights of a sentence encoder (MiniLM), in fp64: against plain
dense loops, and against a sort of everything put together.

A layer of it, and its pooler and a head: the loops hold every gradient.
"""

import pytest
import torch

transformers = pytest.importorskip("transformers")
from helpers import dense_scores  # noqa: E402
from helpers.choosing_models import Case  # noqa: E402
from helpers.scoring import assert_same, scored  # noqa: E402

import sparse_ft as sft  # noqa: E402
from demo.assets import encoder_folder  # noqa: E402

pytestmark = pytest.mark.skipif(
    not encoder_folder().is_dir(),
    reason="the demo's encoder is not installed; make demo fetches it",
)
# Of the real weights there is no exact principal part to compare with: see test_scores.
SCORES = [name for name in dense_scores.GENERAL if name != "principal"]
TEXTS = (
    "a film that is as good as the book",
    "I would not see it again, however much they paid me for it",
    "long",
)


@pytest.fixture(scope="module")
def encoder():
    """(two batches of three sentences with labels, the model)."""
    folder = str(encoder_folder())
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=3, num_hidden_layers=1, dtype=torch.float64
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batches = []
    for number in range(2):
        texts = TEXTS if number == 0 else TEXTS[::-1]
        batch = dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
        batches.append({**batch, "labels": torch.tensor([0, 2, 1]).roll(number)})
    return Case(model.eval(), batches)


@pytest.mark.parametrize("score", [*SCORES, "fisher_expected"])
def test_every_entry_has_the_score_of_a_plain_loop(encoder, score):
    found = scored(encoder, score)
    assert {tuple(s.shape) for s in found.values()} == {(384, 384), (1536, 384), (384, 1536)}
    by_hand = getattr(dense_scores, score)
    assert_same(found, by_hand(encoder.model, list(found), encoder.batches))


@pytest.fixture(scope="module")
def dense(encoder):
    """{name: |E g| [rows, columns]}."""
    names = list(scored(encoder, "magnitude"))
    return dense_scores.gradient(encoder.model, names, encoder.batches)


def worths(dense, structure):
    """{name: what each unit is worth}."""
    dims = {"rows": 1, "columns": 0}
    if structure == "entries":
        return {name: score.flatten() for name, score in dense.items()}
    return {name: score.sum(dims[structure]) for name, score in dense.items()}


def sizes(dense, structure):
    """{name: entries of a unit}."""
    of = {"entries": lambda s: 1, "rows": lambda s: s.size(1), "columns": lambda s: s.size(0)}
    return {name: of[structure](score) for name, score in dense.items()}


def assert_best(plan, pool, every, count):
    """`count` units of the pool train, and none that does not is worth more."""
    chosen = {n: plan[n].index.long() if n in plan else torch.tensor([]).long() for n in pool}
    assert sum(len(index) for index in chosen.values()) == count
    inside = torch.cat([every[name][index] for name, index in chosen.items()])
    outside = torch.cat([drop(every[name], index) for name, index in chosen.items()])
    together = torch.cat([every[name] for name in pool]).sort(descending=True).values
    torch.testing.assert_close(inside.sort(descending=True).values, together[:count])
    assert inside.min() >= outside.max() * (1 - 1e-9)


def drop(values, index):
    keep = torch.ones(len(values), dtype=torch.bool)
    keep[index] = False
    return values[keep]


def choose(encoder, **settings):
    return sft.select(encoder.model, score="gradient", batches=encoder.batches, **settings)


def share_of(units, structure):
    """How many 0.02 of them are: of many rows or columns the nearest multiple of 8."""
    if structure == "entries" or units < 256:
        return round(0.02 * units)
    return 8 * round(0.02 * units / 8)


@pytest.mark.parametrize("structure", ["entries", "rows", "columns"])
def test_budgets_are_those_of_a_sort(encoder, dense, structure):
    every = worths(dense, structure)
    total = sum(len(worth) for worth in every.values())
    plan = choose(encoder, budget=total // 50, structure=structure, scope="global")
    assert_best(plan, list(dense), every, total // 50)
    plan = choose(encoder, density=0.02, structure=structure, scope="tensor")
    for name, worth in every.items():
        assert_best(plan, [name], every, share_of(len(worth), structure))
    plan = choose(encoder, budget=sft.LikeLora(2), structure=structure, scope="tensor")
    for name, score in dense.items():
        asked = 2 * sum(score.shape) / sizes(dense, structure)[name]
        assert_best(plan, [name], every, round(asked))


def test_a_share_of_the_sum(encoder, dense):
    every = worths(dense, "entries")
    together = torch.cat(list(every.values())).sort(descending=True).values
    for share in (0.1, 0.5):
        plan = choose(encoder, budget=sft.Share(share), structure="entries", scope="global")
        count = int(torch.searchsorted(together.cumsum(0), share * together.sum())) + 1
        assert_best(plan, list(dense), every, count)


def test_patterns(encoder, dense):
    """So many of each row, and of each four neighbours."""
    for budget, width, count in ((sft.PerRow(3), None, 3), (sft.NM(2, 4), 4, 2)):
        plan = choose(encoder, budget=budget, structure="entries")
        for name, score in dense.items():
            lines = score.reshape(-1, width or score.size(1))
            mask = plan[name].mask(score.shape).reshape(lines.shape)
            assert (mask.sum(1) == count).all()
            inside = torch.where(mask, lines, torch.inf).amin(1)
            outside = torch.where(mask, -torch.inf, lines).amax(1)
            assert (inside >= outside * (1 - 1e-9)).all()
