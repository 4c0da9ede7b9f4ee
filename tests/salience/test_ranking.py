"""select: its plan for every structure and score, against the choice made by hand, and the model it
leaves alone.
"""

import copy

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.salience.best import best
from sparse_ft.salience.budgets import Density, DensityPerRow
from sparse_ft.salience.units import Structure

STRUCTURES = ("rows", "columns", "blocks", "entries", "entries_per_row")
SCORES = ("random", "magnitude", "gradient")


def top(score, density, structure, block_size=64):
    """The selection of the best units of one matrix, whatever gave the score."""
    if structure == "entries_per_row":
        return sft.Entries(DensityPerRow(density).pick(score, seed=0))
    kind = Structure(structure, block_size)
    units = Density(density).allowance([score.shape], kind).units
    return kind.selection(best(kind.judged(score, False), units, seed=0), score.shape)


class Head(nn.Module):
    """A small language model by transformers' conventions.

    A head, dropout, batch norm, a loss in its output.
    """

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.up, self.norm, self.drop, self.down = (
            nn.Linear(12, 20),
            nn.BatchNorm1d(20),
            nn.Dropout(0.3),
            nn.Linear(20, 12, bias=False),
        )
        self.lm_head = nn.Linear(12, 11, bias=False)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, tokens, labels=None):
        hidden = self.down(self.drop(self.norm(self.up(self.embed(tokens)))))
        logits = self.lm_head(hidden)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return type("Output", (), {"loss": loss, "logits": logits})()


@pytest.fixture
def model():
    return Head()


def batches(n=3):
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "tokens": torch.randint(11, (8,), generator=generator),
            "labels": torch.randint(11, (8,), generator=generator),
        }
        for _ in range(n)
    ]


def everything(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [
        (p.requires_grad, None if p.grad is None else p.grad.clone(), id(p.grad))
        for p in model.parameters()
    ]
    return (
        state,
        flags,
        [m.training for m in model.modules()],
        [type(m) for m in model.modules()],
        torch.get_rng_state(),
    )


def assert_untouched(model, before):
    state, flags, modes, types, rng = everything(model)
    assert (
        all(torch.equal(state[name], before[0][name]) for name in before[0])
        and state.keys() == before[0].keys()
    )
    assert modes == before[2] and types == before[3] and torch.equal(rng, before[4])
    for (requires_grad, grad, identity), (wanted, old, same) in zip(flags, before[1], strict=True):
        assert (
            requires_grad == wanted
            and identity == same
            and (grad is None if old is None else torch.equal(grad, old))
        )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_and_score(model, structure, score):
    plan = sft.select(
        model, density=0.25, structure=structure, score=score, block_size=(3, 4), batches=batches()
    )
    kinds = {"rows": sft.Rows, "columns": sft.Columns, "blocks": sft.Blocks}
    assert list(plan) == ["up.weight", "down.weight"] and isinstance(plan, sft.Plan)
    for name, selection in plan.items():
        assert type(selection) is kinds.get(structure, sft.Entries)
        shape = sft.matrix_shape(model, name)
        assert 0.2 <= selection.density(shape) <= 0.3
        if structure == "entries_per_row":
            assert len(set(selection.mask(shape).sum(1).tolist())) == 1
        if structure == "blocks":
            assert selection.block_size == (3, 4)
    report = sft.convert(model, plan)
    assert report.trainable == sum(
        s.nnz(shape) for s, shape in zip(plan.values(), [(20, 12), (12, 20)], strict=True)
    )


def best_by_hand(score, structure, density):
    """The selection of the highest scores, one candidate at a time."""
    rows, columns = score.shape
    if structure in ("rows", "columns"):
        sums = [float(line.double().sum()) for line in (score if structure == "rows" else score.T)]
        best = sorted(
            sorted(range(len(sums)), key=lambda i: -sums[i])[: max(1, round(len(sums) * density))]
        )
        return (sft.Rows if structure == "rows" else sft.Columns)(best)
    if structure == "blocks":
        places = [(r, c) for r in range(-(-rows // 3)) for c in range(-(-columns // 4))]
        sums = {
            (r, c): float(score[3 * r : 3 * r + 3, 4 * c : 4 * c + 4].double().sum())
            for r, c in places
        }
        return sft.Blocks(
            sorted(
                sorted(places, key=lambda at: -sums[at])[: max(1, round(len(places) * density))]
            ),
            (3, 4),
        )
    if structure == "entries_per_row":
        taken = [
            line.argsort(descending=True)[: round(columns * density)].sort().values
            for line in score
        ]
        return sft.Entries([r * columns + c for r, line in enumerate(taken) for c in line.tolist()])
    flat = score.reshape(-1).tolist()
    return sft.Entries(
        sorted(sorted(range(len(flat)), key=lambda i: -flat[i])[: round(len(flat) * density)])
    )


@pytest.mark.parametrize("structure", STRUCTURES)
def test_magnitude_takes_the_largest(model, structure):
    plan = sft.select(model, density=0.3, structure=structure, score="magnitude", block_size=(3, 4))
    for name, selection in plan.items():
        assert selection == best_by_hand(model.get_parameter(name).detach().abs(), structure, 0.3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradient_score_is_the_absolute_mean_gradient(model, structure):
    model.eval()
    plan = sft.select(
        model,
        density=0.3,
        structure=structure,
        score="gradient",
        block_size=(3, 4),
        batches=iter(batches()),
    )
    twin = copy.deepcopy(model)
    torch.stack([twin(**batch).loss for batch in batches()]).mean().backward()
    for name, selection in plan.items():
        assert selection == best_by_hand(twin.get_parameter(name).grad.abs(), structure, 0.3)


def test_opposite_gradients_cancel():
    """|E g|, not E |g|: a weight whose gradients cancel over the batches is worth nothing."""
    model = nn.Linear(3, 1, bias=False)
    inputs = [torch.tensor([[5.0, 1.0, 0.0]]), torch.tensor([[-5.0, 1.0, 0.0]])]
    plan = sft.select(
        model,
        density=1 / 3,
        structure="columns",
        score="gradient",
        batches=inputs,
        loss=lambda m, x: m(x).sum(),
    )
    assert plan == {"weight": sft.Columns([1])}


def test_blocks_are_judged_by_what_they_have():
    """Sums: an edge block of few entries does not win by a mean."""
    score = torch.ones(5, 5)
    score[4, 4] = 3
    assert top(score, 0.1, "blocks", (4, 4)) == sft.Blocks([[0, 0]], 4)
    score[4, 4] = 17
    assert top(score, 0.1, "blocks", (4, 4)) == sft.Blocks([[1, 1]], 4)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_at_least_one_and_all(structure):
    score = torch.rand(6, 10)
    assert len(top(score, 1e-9, structure, (4, 4))) == (6 if structure == "entries_per_row" else 1)
    assert top(score, 1, structure, (4, 4)).density((6, 10)) == 1


def test_sums_of_16_bit_scores_are_taken_in_fp32():
    score = torch.ones(2, 4096, dtype=torch.bfloat16)
    score[1, 0] = 2  # a bf16 sum would stop at 256 and see no difference
    assert top(score, 0.5, "rows") == sft.Rows([1])


def test_random_is_seeded_and_independent_of_the_global_state(model):
    def choose(seed):
        return sft.select(model, density=0.2, structure="entries", seed=seed)

    first = choose(0)
    torch.manual_seed(99)
    assert choose(0) == first and choose(1) != first
    assert (
        first["up.weight"].mask((20, 12)).reshape(-1).tolist()
        != first["down.weight"].mask((12, 20)).reshape(-1).tolist()
    )


@pytest.mark.parametrize(
    "targets, names",
    [
        (None, ["up.weight", "down.weight"]),
        ("lm_head.weight", ["lm_head.weight"]),
        ("*.weight", None),
        (["up.*", "*down*"], ["up.weight", "up.bias", "down.weight"]),
        (("embed.weight",), ["embed.weight"]),
        ("[ud]*.weight", ["up.weight", "down.weight"]),
        ("norm.weight", ["norm.weight"]),
    ],
)
def test_targets(model, targets, names):
    names = names or [name for name, _ in model.named_parameters() if name.endswith("weight")]
    assert list(sft.select(model, density=0.5, structure="entries", targets=targets)) == names


def test_default_targets_of_models_without_a_known_head():
    model = nn.Sequential(
        nn.Linear(4, 5),
        nn.ReLU(),
        nn.Sequential(nn.Linear(5, 6)),
        nn.Conv1d(1, 1, 3),
        nn.LayerNorm(4),
    )
    assert list(sft.select(model, density=0.5)) == ["0.weight", "2.0.weight"]
    assert list(sft.select(nn.Linear(4, 4), density=0.5)) == ["weight"]


def test_default_targets_of_transformers_models():
    transformers = pytest.importorskip("transformers")
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8)
    )
    names = list(sft.select(gpt2, density=0.5))
    assert names == [
        f"transformer.h.0.{name}.weight"
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    tokens = torch.randint(16, (2, 6))
    plan = sft.select(
        gpt2,
        density=0.2,
        structure="rows",
        score="gradient",
        batches=[{"input_ids": tokens, "labels": tokens}],
    )
    assert list(plan) == names and sft.convert(gpt2, plan).replaced == names


def test_the_matrix_of_a_convolution_is_its_stored_tensor():
    model = nn.Sequential(nn.Conv2d(2, 6, 3))
    plan = sft.select(
        model, density=0.5, structure="columns", score="magnitude", targets="0.weight"
    )
    assert plan["0.weight"] == best_by_hand(
        model[0].weight.detach().abs().view(6, 18), "columns", 0.5
    )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, score, training):
    model.train(training)
    model.norm.eval()
    model.up.weight.requires_grad_(False)
    model(**batches()[0]).loss.backward()
    before = everything(model)
    sft.select(model, density=0.25, score=score, batches=batches())
    assert_untouched(model, before)


def test_the_model_is_left_as_it_was_when_the_loss_fails(model):
    model(**batches()[0]).loss.backward()
    before, seen = everything(model), []

    def loss(model, batch):
        if seen:
            raise KeyError("no more")
        seen.append(batch)
        model.eval()
        return model(**batch).loss

    with pytest.raises(KeyError, match="no more"):
        sft.select(model, density=0.25, score="gradient", batches=batches(), loss=loss)
    assert_untouched(model, before)


def test_gradients_are_taken_under_no_grad_too(model):
    model.eval()
    with torch.no_grad():
        inside = sft.select(model, density=0.25, score="gradient", batches=batches())
        assert not torch.is_grad_enabled()
    assert inside == sft.select(model, density=0.25, score="gradient", batches=batches())


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        *(
            ({"density": density}, ValueError, f"density: .*{density}")
            for density in (0, -0.5, 1.5, float("nan"), "0.1", None)
        ),
        ({"structure": "diagonal"}, ValueError, "structure: .*'entries_per_row'.*'diagonal'"),
        ({"score": "luck"}, ValueError, "score: .*'gradient'.*'luck'"),
        ({"scope": "galaxy"}, ValueError, "scope: .*'layer'.*'galaxy'"),
        (
            {"targets": "q_proj"},
            ValueError,
            "targets: 'q_proj' matches no parameter.*'embed.weight'",
        ),
        (
            {"targets": ["up.weight", "absent.*"]},
            ValueError,
            r"targets: 'absent.\*' matches no parameter",
        ),
        ({"score": "gradient"}, ValueError, "batches: .*None"),
        ({"score": "gradient", "batches": []}, ValueError, "batches: .*at least one"),
        ({"score": "gradient", "batches": [{"tokens": torch.arange(8)}]}, ValueError, "loss: "),
        ({"score": "gradient", "batches": [1], "loss": lambda m, b: 3.0}, TypeError, "loss: .*3.0"),
        (
            {
                "score": "gradient",
                "batches": [1],
                "loss": lambda m, b: torch.ones(2, requires_grad=True),
            },
            TypeError,
            r"loss: .*Tensor \[2\] float32",
        ),
        (
            {"score": "gradient", "batches": [1], "loss": lambda m, b: m.up.weight.sum()},
            ValueError,
            "targets: .*'down.weight'",
        ),
        ({"structure": "blocks", "block_size": 0}, ValueError, "block_size: .*0"),
        (
            {"structure": "blocks", "block_size": (4, 4, 4)},
            ValueError,
            r"block_size: .*\(4, 4, 4\)",
        ),
        ({"structure": "blocks", "block_size": None}, ValueError, "block_size: .*None"),
    ],
)
def test_errors_name_the_argument_and_leave_the_model(model, keywords, error, message):
    before = everything(model)
    with pytest.raises(error, match=message):
        sft.select(model, **{"density": 0.5, **keywords})
    assert_untouched(model, before)
