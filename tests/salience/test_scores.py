"""Each score against a plain dense loop, on eight architectures, and what it says of itself."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
from helpers import choosing_models, dense_scores  # noqa: E402
from helpers.scoring import assert_same, scored  # noqa: E402

import sparse_ft as sft  # noqa: E402
from sparse_ft.salience.draws import Draws  # noqa: E402
from sparse_ft.salience.targets import targets_of  # noqa: E402


@pytest.mark.parametrize("score", dense_scores.GENERAL)
@pytest.mark.parametrize("kind", choosing_models.CASES)
def test_every_entry_has_the_score_of_a_plain_loop(kind, score):
    case = choosing_models.case(kind)
    found = scored(case, score)
    assert_same(found, dense_scores.GENERAL[score](case.model, list(found), case.batches))


@pytest.mark.parametrize("kind", ["BERT", "ViT", "convnet"])
def test_the_expected_fisher_weighs_every_class_of_a_classifier(kind):
    case = choosing_models.case(kind)
    found = scored(case, "fisher_expected")
    assert_same(found, dense_scores.fisher_expected(case.model, list(found), case.batches))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Phi-3", "GPT-2", "GPT-NeoX"])
def test_the_expected_fisher_draws_the_labels_of_a_language_model(kind, padded):
    case = choosing_models.case(kind)
    for batch in case.batches:
        del batch["labels"]  # nobody looks at them
        if padded:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            batch["attention_mask"][1, 5:] = 0
    found = scored(case, "fisher_expected")
    assert_same(found, dense_scores.fisher_sampled(case.model, list(found), case.batches))


def test_each_batch_draws_labels_of_its_own():
    case = choosing_models.case("Llama")
    first = case.batches[0]
    once, twice = (
        scored(case._replace(batches=[first] * count), "fisher_expected") for count in (1, 2)
    )
    for name, score in once.items():
        assert not torch.allclose(twice[name], score, rtol=1e-2), name
    again = scored(case._replace(batches=[first] * 2), "fisher_expected")
    passes = scored(
        case._replace(batches=[first] * 2), "fisher_expected", accumulate="passes", passes=3
    )
    for name, score in twice.items():
        assert torch.equal(again[name], score), name
        assert torch.equal(passes[name], score), name


def test_ranks_draw_what_one_process_draws_for_their_batches_in_turn():
    alone = Draws(7, SimpleNamespace(rank=0, size=1))
    ranks = [Draws(7, SimpleNamespace(rank=rank, size=2)) for rank in range(2)]
    drawn = [alone.take() for _ in range(6)]
    assert [draws.take() for _ in range(3) for draws in ranks] == drawn
    assert drawn[0] == 7 and len(set(drawn)) == 6


STRUCTURES = ("rows", "columns", "blocks", "tensors")


def by_hand(score, structure, shape):
    """The sum of each unit of a matrix, by its mask."""
    if structure == "tensors":
        return score.sum().reshape(1)
    if structure == "rows":
        return score.sum(1)
    if structure == "columns":
        return score.sum(0)
    high, wide = min(5, shape[0]), min(6, shape[1])
    places = [(r, c) for r in range(0, shape[0], high) for c in range(0, shape[1], wide)]
    return torch.stack([score[r : r + high, c : c + wide].sum() for r, c in places])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("score", ["gradient_abs", "fisher", "taylor", "snip", "gradient"])
@pytest.mark.parametrize("kind", ["BERT", "GPT-2", "Qwen-MoE", "convnet"])
def test_units_are_the_sums_of_their_entries(kind, score, structure, monkeypatch):
    monkeypatch.setattr("sparse_ft.salience.tally.STRIP", 100)  # a few strips a matrix
    case = choosing_models.case(kind)
    found = scored(case, score, structure)
    dense = dense_scores.GENERAL[score](case.model, list(found), case.batches)
    sizes = {name: by_hand(s.abs(), structure, s.shape) for name, s in dense.items()}
    wanted = {name: by_hand(s, structure, s.shape) for name, s in dense.items()}
    assert_same(found, wanted, sizes)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", ["Llama", "GPT-2"])
def test_units_may_be_judged_by_the_size_of_their_sum(kind, structure):
    """SMT's own: |mean g| of a block."""
    case = choosing_models.case(kind)
    found = scored(case, "gradient", structure, "abs_of_sum")
    dense = dense_scores.mean(dense_scores.gradients(case.model, list(found), case.batches))
    wanted = {name: by_hand(g, structure, g.shape).abs() for name, g in dense.items()}
    plain = scored(case, "gradient", structure)
    assert_same(found, wanted, plain)  # layer norm's outputs add up to zero
    assert any((plain[name] - found[name]).abs().max() > 1e-6 for name in found)


@pytest.mark.parametrize("accumulate", ["cpu", "passes"])
@pytest.mark.parametrize("score", ["gradient", "fisher", "sensitivity", "taylor"])
@pytest.mark.parametrize("structure", ["entries", "columns"])
def test_wherever_it_is_accumulated(score, accumulate, structure):
    case = choosing_models.case("Llama")
    plain = scored(case, score, structure)
    found = scored(case, score, structure, accumulate=accumulate, passes=3)
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_a_score_of_three_lines():
    case = choosing_models.case("BERT")
    mine = sft.Score(
        update=lambda acc, W, g: acc + (W * g).abs(),  # a new accumulator
        finish=lambda acc, W: acc.sqrt(),
    )
    found = scored(case, mine)
    every = dense_scores.gradients(case.model, list(found), case.batches)
    products = [dense_scores.times(case.model, one) for one in every]
    wanted = {n: s.sqrt() for n, s in dense_scores.mean(products, torch.abs).items()}
    assert_same(found, wanted)
    mine = sft.Score(update=lambda acc, W, g: acc.add_(g.abs()), per="example")
    every = dense_scores.gradients(case.model, list(found), dense_scores.alone(case.batches))
    assert_same(scored(case, mine), dense_scores.mean(every, torch.abs))


def test_a_mapping_and_a_base():
    case = choosing_models.case("ViT")
    names = list(targets_of(case.model, None).weights)
    given = {name: torch.rand_like(case.model.get_parameter(name)) for name in names}
    assert_same(scored(case, given), given)
    base = {name: p.detach().clone() for name, p in case.model.named_parameters()}
    with torch.no_grad():
        for name in names:
            case.model.get_parameter(name).add_(given[name])
    for before in (base, _model_of(base)):
        assert_same(scored(case, sft.scores.movement(before)), given)


def _model_of(state):
    model = choosing_models.case("ViT").model
    model.load_state_dict(state, strict=False)
    return model


@pytest.mark.parametrize("kind", ["Llama", "GPT-2", "convnet"])
def test_activation_is_the_norm_of_each_input_feature(kind):
    case = choosing_models.case(kind)
    found = scored(case, "activation")
    inputs = {name: [] for name in found}
    for name in found:
        module = case.model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda m, x, name=name: inputs[name].append(x[0]))
    dense_scores.losses(case.model, case.batches)
    for name, score in found.items():
        weight = case.model.get_parameter(name)
        if weight.dim() == 4:
            every = torch.cat([x.flatten(2) for x in inputs[name]]).square().mean((0, 2)).sqrt()
            group = 0 if name == "first.weight" else (len(score) - 1) // (len(score) // 2)
            channel = every[group * weight.size(1) :][: weight.size(1)]
            assert torch.allclose(score[-1], channel.repeat_interleave(9))
        else:
            every = torch.cat([x.reshape(-1, x.size(-1)) for x in inputs[name]])
            every = every.square().mean(0).sqrt()
            wanted = every[:, None] if kind == "GPT-2" else every
            assert torch.allclose(score, wanted.expand_as(score))


def test_fisher_of_language_models_with_unequal_labels():
    """An example's own loss is the mean over its own labels; a batch's is over all of them."""
    case = choosing_models.case("Llama")
    for batch in case.batches:
        batch["labels"] = batch["labels"].clone()
        batch["labels"][1, 3:] = -100
        batch["labels"][2, 5:] = -100
    found = scored(case, "fisher")
    assert_same(found, dense_scores.fisher(case.model, list(found), case.batches))


def backwards(case, score, **settings):
    """How many backwards a score takes."""
    count = []

    def loss(model, batch):
        value = dense_scores.losses(model, [batch])[0]
        value.register_hook(lambda grad: count.append(1) and None)
        return value

    scored(case, score, loss=loss, **settings)
    return len(count)


def test_fisher_takes_one_backward_a_batch_where_layers_allow_it():
    assert backwards(choosing_models.case("Llama"), "fisher") == 2 + 2  # two to try it out
    convolutions = choosing_models.case("convnet")._replace(targets=["first.*", "grouped.*"])
    assert backwards(convolutions, "fisher") == 6
    case = choosing_models.case("Llama")
    mixed = case._replace(targets=["*q_proj.weight", "*norm.weight"])
    assert backwards(mixed, "fisher") == 2 + 2 + 6


def test_a_loss_may_give_one_number_an_example():
    case = choosing_models.case("Llama")

    def loss(model, batch):
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        each = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return each.view_as(labels).mean(1)

    found = scored(case, "fisher", loss=loss)
    assert_same(found, dense_scores.fisher(case.model, list(found), case.batches))


class Twice(nn.Module):
    """A layer that is called twice, one that is read past its forward, and one whose first
    dimension is not the examples'.
    """

    def __init__(self):
        super().__init__()
        self.twice, self.read, self.turned = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        hidden = self.twice(self.twice(x).tanh()).tanh()
        hidden = self.turned(hidden.transpose(0, 1)).transpose(0, 1).tanh()
        return (self.read(hidden) + hidden @ self.read.weight).tanh()


@pytest.mark.parametrize("score", ["fisher", "gradient_abs"])
@pytest.mark.parametrize("structure", ["entries", "rows"])
def test_layers_whose_gradient_is_no_product_go_the_plain_way(score, structure):
    model = Twice().double()
    batches = [torch.randn(3, 3, 3, dtype=torch.float64) for _ in range(2)]
    loss = lambda m, x: m(x).square().sum((1, 2)).mean()  # noqa: E731
    case = choosing_models.Case(model, batches, ["*.weight"])
    found = scored(case, score, structure, loss=loss)
    if score == "fisher":
        batches = [x[i : i + 1] for x in batches for i in range(3)]
    every = []
    for x in batches:
        grads = torch.autograd.grad(loss(model, x), [model.get_parameter(n) for n in found])
        every.append(dict(zip(found, grads)))
    wanted = dense_scores.mean(every, torch.square if score == "fisher" else torch.abs)
    assert_same(found, {n: s.sum(1) if structure == "rows" else s for n, s in wanted.items()})


def test_dropout_in_training_is_no_obstacle():
    """It is the mask of one run over the batch; whether layers give factors is tried without."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    case = choosing_models.Case(model.train(), [torch.randn(6, 4)], ["*.weight"])
    count = []

    def loss(model, x):
        value = model(x).square().sum(1).mean()
        value.register_hook(lambda grad: count.append(1) and None)
        return value

    scored(case, "fisher", loss=loss)
    assert len(count) == 3


@pytest.mark.parametrize(
    "score, error, message",
    [
        ("fishes", ValueError, "score: .*got 'fishes'; did you mean 'fisher'"),
        (3, TypeError, "score: expected a name.*got 3"),
        (lambda: sft.Score(update=3), TypeError, "update: expected a callable, got 3"),
        (
            lambda: sft.Score(update=lambda acc, W, g: None, per="token"),
            ValueError,
            "per: .*got 'token'",
        ),
        (
            lambda: sft.Score(update=lambda acc, W, g: g.sum()),
            ValueError,
            r"score: update .*returned a Tensor \[\]",
        ),
        (
            lambda: sft.Score(
                update=lambda acc, W, g: acc.add_(g), finish=lambda acc, W: acc.sum(1)
            ),
            ValueError,
            r"score: finish .*returned a Tensor \[8\]",
        ),
        (sft.scores.fisher, TypeError, r"score: got the function fisher; call it: fisher\(\)"),
        (lambda: sft.scores.principal(0), ValueError, "rank: .*got 0"),
        (lambda: sft.scores.sensitivity(1.0), ValueError, "beta: .*got 1.0"),
        (lambda: sft.scores.movement(3), TypeError, "base: .*got 3"),
        (lambda: sft.scores.movement({}), ValueError, "base: .*nothing for 'first.weight'"),
        ({"first.weight": torch.ones(3)}, ValueError, "score: expected a tensor of 216 numbers"),
    ],
)
def test_what_is_no_score_is_named(score, error, message):
    case = choosing_models.case("convnet")
    with pytest.raises(error, match=message):
        score = score() if getattr(score, "__name__", "") == "<lambda>" else score
        sft.select(case.model, density=0.1, score=score, batches=case.batches)


def test_biases_beside_layers_that_give_factors():
    case = choosing_models.case("BERT")._replace(targets=["*query.weight", "*query.bias"])
    for score in ("gradient_abs", "fisher"):
        found = scored(case, score, "tensors")
        assert len(found) == 4
        dense = dense_scores.GENERAL[score](case.model, list(found), case.batches)
        assert_same(found, {name: s.sum().reshape(1) for name, s in dense.items()})


@pytest.mark.parametrize("iterations, least", [(0, 0.3), (2, 0.85), (4, 0.96), (8, 0.99)])
def test_how_near_the_principal_part_is_to_the_exact_one(iterations, least):
    """The share of the best entries that both name, of singular values that fall as 1/√i."""
    generator = torch.Generator().manual_seed(1)
    left = torch.linalg.qr(torch.randn(300, 200, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(200, 200, generator=generator)).Q
    sizes = torch.arange(1, 201) ** -0.5
    exact = ((left[:, :8] * sizes[:8]) @ right[:8]).abs()
    score = sft.scores.principal(8, iterations)
    weight = (left * sizes) @ right
    found = score.rate("", weight, torch.Generator().manual_seed(0))
    again = score.rate("", weight, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    best = [set(one.flatten().topk(500).indices.tolist()) for one in (exact, found)]
    assert len(best[0] & best[1]) >= 500 * least
