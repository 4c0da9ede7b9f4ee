"""What a new user gets wrong in `select`.

Each message names the argument, what came, and the way out.
"""

import warnings

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.messages import described


class Model(nn.Module):
    """Takes x and labels; gives an object with a loss if there are labels."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(40, 40) for _ in range(2))
        self.head = nn.Linear(40, 3)

    def forward(self, x, labels=None):
        for layer in self.layers:
            x = layer(x).relu()
        logits = self.head(x)
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


BATCH = {"x": torch.randn(4, 40), "labels": torch.tensor([0, 1, 2, 0])}
PAIR = BATCH["x"], BATCH["labels"]
SHAPES = r"Tensor \[4, 40\] float32.*Tensor \[4\] int64"


def test_a_model_that_returns_a_dict_has_its_loss_in_it():
    sft.select(Model(), density=0.1, batches=[BATCH])


@pytest.mark.parametrize(
    "batches, error, message",
    [
        ([PAIR], TypeError, rf"batches: without loss=.* got a tuple \({SHAPES}\); pass loss="),
        ([list(PAIR)], TypeError, rf"batches: without loss=.* got a list \({SHAPES}\); pass loss="),
        (
            [BATCH["x"]],
            TypeError,
            r"batches: without loss=.* got a Tensor \[4, 40\] float32; pass loss=",
        ),
        (BATCH, TypeError, rf"batches: .* got a dict \{{'x': {SHAPES}\}}; pass batches=\[batch\]"),
        ("train", TypeError, r"batches: expected an iterable of batches, got 'train'"),
        (3, TypeError, r"batches: expected an iterable of batches, got 3"),
        (
            [{"x": BATCH["x"]}],
            ValueError,
            r"loss: .* a Tensor \[4, 3\] float32 for a batch with x; .* labels .* pass loss=",
        ),
        ([], ValueError, "batches: expected at least one batch"),
    ],
)
def test_batches_that_are_none(batches, error, message):
    model = Model()
    with pytest.raises(error, match=message) as raised:
        sft.select(model, density=0.1, batches=batches)
    assert "Linear(" not in str(raised.value)  # not the whole model


@pytest.mark.parametrize(
    "loss, error, message",
    [
        (
            lambda m, b: m(**b),
            TypeError,
            r"loss: expected a scalar tensor, got a dict \{'loss': Tensor \[\] float32",
        ),
        (
            lambda m, b: m(b["x"]),
            TypeError,
            r"loss: expected a scalar tensor, got a Tensor \[4, 3\] float32",
        ),
        (lambda m, b: m(**b)["loss"].item(), TypeError, r"loss: expected a scalar tensor, got \d"),
        (lambda m, b: None, TypeError, "loss: expected a scalar tensor, got None"),
        (
            lambda m, b: m(**b)["loss"].detach(),
            ValueError,
            "loss: it does not depend on any targeted weight.*detach",
        ),
    ],
)
def test_a_loss_that_is_none(loss, error, message):
    with pytest.raises(error, match=message):
        sft.select(Model(), density=0.1, batches=[BATCH], loss=loss)


@pytest.mark.parametrize(
    "targets, message",
    [
        ("haed.weight", r"'haed.weight' matches no parameter; did you mean 'head.weight'\?"),
        ("*lyers.1.weight", r"did you mean 'layers.1.weight'\?"),
        ("head", r"compared with whole names: '\*head\*' matches 2, such as 'head.weight'"),
        ("layers.1", r"'\*layers.1\*' matches 2, such as 'layers.1.weight'"),
        ("q_proj", r"names look like 'layers.0.weight'"),
    ],
)
def test_a_typo_in_a_target(targets, message):
    with pytest.raises(ValueError, match=f"targets: .*{message}"):
        sft.select(Model(), density=0.1, targets=targets)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"density": 5}, r"density: expected a share in \(0, 1\], got 5; 5 % is 0.05"),
        ({"structure": "column"}, r"structure: .*got 'column'; did you mean 'columns'\?"),
        ({"score": "gradients"}, r"score: .*got 'gradients'; did you mean 'gradient'\?"),
    ],
)
def test_a_typo_in_a_choice(keywords, message):
    with pytest.raises(ValueError, match=message):
        sft.select(Model(), **{"density": 0.1, **keywords})


def test_batches_make_the_score_the_gradient():
    torch.manual_seed(0)
    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = sft.select(model, density=0.1, batches=[BATCH])
    assert plan == sft.select(model, density=0.1, score="gradient", batches=[BATCH])


def test_a_random_choice_by_default_warns_at_the_call():
    with pytest.warns(
        UserWarning, match="score: .*at random; pass batches=.*score='random'"
    ) as caught:
        plan = sft.select(Model(), density=0.1)
    assert caught[0].filename == __file__ and plan == sft.select(
        Model(), density=0.1, score="random"
    )


@pytest.mark.parametrize("score", ["random", "magnitude"])
def test_batches_that_a_score_ignores_are_named(score):
    with pytest.warns(UserWarning, match=f"batches: score='{score}' does not look at them"):
        sft.select(Model(), density=0.1, score=score, batches=[BATCH])


@pytest.mark.parametrize(
    "structure, unit, share",
    [("columns", "column", 40), ("rows", "row", 40), ("entries_per_row", "entry a row", 40)],
)
def test_less_than_one_line_is_named_with_what_trains(structure, unit, share):
    with pytest.warns(UserWarning) as caught:
        plan = sft.select(Model(), density=0.001, structure=structure, score="random")
    (warning,) = (each for each in caught if issubclass(each.category, UserWarning))
    told = (
        f"density: 0.001 is less than one {unit} of 'layers.0.weight' and of 1 more, and one"
        f" trains: {1 / share} of "
    )
    assert (
        str(warning.message)
        == f"{told}'layers.0.weight', 25 times what was asked; structure='entries' trains what is"
        " asked"
    )
    assert (
        all(selection.density((40, 40)) == 1 / share for selection in plan.values())
        and warning.filename == __file__
    )


def test_no_warning_where_about_what_was_asked_trains():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for density in (0.013, 0.025, 0.1, 1):
            sft.select(Model(), density=density, score="random")
        sft.select(Model(), density=0.001, structure="entries", score="random")


@pytest.mark.parametrize(
    "value, text",
    [
        (torch.zeros(2, 3, dtype=torch.bfloat16), "a Tensor [2, 3] bfloat16"),
        ((torch.zeros(1), [1, 2], "ab"), "a tuple (Tensor [1] float32, list of 2, 'ab')"),
        ({"a": torch.zeros(1), "b": {"c": 1}}, "a dict {'a': Tensor [1] float32, 'b': dict of 1}"),
        (list(range(9)), "a list (0, 1, 2, 3, …)"),
        (nn.Linear(2, 2), "a Linear"),
        (object(), "a object"),
        ("x" * 100, "a str"),
        (None, "None"),
        (1.5, "1.5"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_are_told_by_type_and_shape(value, text):
    assert described(value) == text


@pytest.mark.parametrize(
    "settings, error, message",
    [
        (dict(density=True), ValueError, r"density: expected a share in \(0, 1\], got True"),
        (dict(budget=True), ValueError, r"budget: expected a share in \(0, 1\], got True"),
        (dict(), ValueError, "density: .* got None; pass density= or budget="),
        (dict(density=0.1, targets=[]), ValueError, r"targets: expected glob .* got \[\]"),
        (dict(density=0.1, seed=1.5), TypeError, "seed: expected an int, got 1.5"),
        (
            dict(density=0.1, scope="global", floor=0.5, cap=0.1),
            ValueError,
            "floor: 0.5 is more than cap=0.1",
        ),
        (
            dict(budget=sft.Flops(1e-9)),
            ValueError,
            r"budget: Flops\(share=1e-09\) is less than the backward of any tensor",
        ),
        (
            dict(density=0.1, score="activation", batches=[]),
            ValueError,
            "batches: expected at least one for score='activation'",
        ),
    ],
)
def test_settings_that_choose_nothing(settings, error, message):
    with pytest.raises(error, match=message):
        sft.select(Model(), **{"batches": [BATCH], **settings})


def test_numbers_of_numpy():
    numpy = pytest.importorskip("numpy")
    model = Model()
    for count, share in ((numpy.int64(3), numpy.float32(0.25)), (3, 0.25)):
        settings = dict(score="random", seed=numpy.int64(2))
        by_count = sft.select(model, budget=count, **settings)
        assert [what.nnz((40, 40)) for what in by_count.values()] == [120, 120]
        by_share = sft.select(model, density=share, **settings)
        assert [what.nnz((40, 40)) for what in by_share.values()] == [400, 400]


@pytest.mark.parametrize("structure", ["columns", "entries"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scores_that_are_all_zero_are_told_of_once(structure, scope):
    settings = dict(density=0.1, structure=structure, scope=scope, batches=[BATCH])
    with pytest.warns(UserWarning, match="'gradient' is 0 for every entry") as told:
        sft.select(Model(), loss=lambda m, b: m(**b)["loss"] * 0, **settings)
    assert len(told) == 1 and told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sft.select(Model(), **settings)


def test_groups_without_their_scope_are_told_of():
    with pytest.warns(UserWarning, match="groups: scope='layer' does not look at them"):
        sft.select(Model(), density=0.1, batches=[BATCH], groups={"all": "*"})


def test_first_mistakes_with_estimate_reselect_and_rotate():
    model, inputs = Model(), {"x": BATCH["x"]}
    with pytest.raises(TypeError, match="plan: it knows no 'structre'; did you mean 'structure'"):
        sft.estimate(model, {"structre": "rows", "density": 0.1}, inputs=inputs)
    with pytest.raises(TypeError, match="dtype: expected a torch.dtype .* got 'bf16'"):
        sft.estimate(model, None, inputs=inputs, dtype="bf16")
    with pytest.raises(TypeError, match="inputs: expected .argument: tensor., got a Tensor"):
        sft.estimate(model, None, inputs=BATCH["x"])
    sft.convert(model, {"layers.0.weight": sft.Rows([1]), "layers.1.weight": sft.Rows([1])})
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-3)
    with pytest.raises(TypeError, match="seeds: expected a mapping .name: Seed., got 3"):
        sft.reselect(model, optimizer, {"layers.0.weight": sft.Rows([2])}, seeds=3)
    with pytest.raises(ValueError, match="always: '.norm.' matches no parameter"):
        sft.Rotate(1, 1, always="*norm*").attach(model, optimizer)


class Wide(nn.Module):
    """One weight of 6 rows and 4 columns."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        (
            dict(score={"layer.weight": torch.rand(4, 6)}),
            ValueError,
            r"score: expected shape \[6, 4\] for 'layer.weight', got \[4, 6\]",
        ),
        (
            dict(score={"layer.weight": torch.rand(6, 4, dtype=torch.complex64)}),
            TypeError,
            r"score: expected real numbers for 'layer.weight', got a Tensor \[6, 4\] complex64",
        ),
        (
            dict(score="magnitude", scope="group", groups=["layer*"]),
            TypeError,
            "groups: expected a mapping .*, got a list",
        ),
        (dict(score="magnitude", targets=3), TypeError, "targets: expected glob .*, got 3"),
        (dict(score="magnitude", scope="global", cap=0), ValueError, "cap: 0 lets nothing train"),
    ],
)
def test_scores_of_another_shape_and_names_of_no_parameters(settings, error, message):
    """A transposed score was read in the order of its own memory, as that of other entries."""
    with pytest.raises(error, match=message):
        sft.select(Wide(), density=0.5, structure="entries", **settings)


def test_a_mask_and_flat_scores_are_scores():
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[5, 1] = mask[2, 3] = True
    for score in (mask, mask.flatten(), mask.long(), mask.double()):
        settings = dict(budget=2, structure="entries", targets="layer.weight")
        plan = sft.select(Wide(), score={"layer.weight": score}, **settings)
        assert plan["layer.weight"] == sft.Entries([11, 21])
