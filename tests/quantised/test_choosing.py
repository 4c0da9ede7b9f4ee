"""Choosing what trains over a quantised base: scores of activations and weights, weak columns."""

import pytest
import torch
from helpers.quantised import FORMATS, HIDDEN, dense_twin, network, quantise
from torch import nn

import sparse_ft as sft

NAMES = ["0.weight", "2.weight", "4.weight"]


def batches():
    generator = torch.Generator().manual_seed(4)
    scale = torch.linspace(0.1, 2, HIDDEN)
    return [torch.randn(8, HIDDEN, generator=generator) * scale for _ in range(3)]


def loss(model, batch):
    return model(batch).square().mean()


def chosen(model, **settings):
    settings = {"density": 0.1, "batches": batches(), "loss": loss, **settings}
    return sft.select(model, **settings)


def by_hand(model, weights, rounded, count):
    """{name: the `count` columns of the largest (XXᵀ)_jj ‖W_:j − Ŵ_:j‖²}."""
    seen = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(f"{name}.weight", []).append(inputs[0])
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        for batch in batches():
            model(batch)
    for handle in handles:
        handle.remove()
    found = {}
    for name in NAMES:
        error = (weights[name] - rounded[name]).square().sum(0)
        driven = torch.cat(seen[name]).square().sum(0)
        best = (driven * error).topk(count[name]).indices
        found[name] = sorted(best.tolist())
    return found


def weights_of(model):
    return {name: model.get_parameter(name).detach().clone() for name in NAMES}


def columns_of(plan):
    return {name: what.index.tolist() for name, what in plan.items()}


def grid(weight, bits):
    """Round to nearest between the ends of each row, as OWQ does."""
    rows = []
    for row in weight:
        step = (row.max() - row.min()) / (2**bits - 1)
        rows.append(((row - row.min()) / step).round() * step + row.min())
    return torch.stack(rows)


COUNT = {"0.weight": 6, "2.weight": 13, "4.weight": 6}


@pytest.mark.parametrize("bits", [3, 4])
def test_weak_columns_of_a_model_that_will_be_quantised(bits):
    model = network()
    plan = chosen(model, score=sft.scores.weak_columns(bits))
    weights = weights_of(model)
    rounded = {name: grid(weight, bits) for name, weight in weights.items()}
    assert columns_of(plan) == by_hand(model, weights, rounded, COUNT)
    one = chosen(model, score=sft.scores.weak_columns(lambda weight: grid(weight, bits)))
    assert columns_of(one) == columns_of(plan)


@pytest.mark.parametrize("form", FORMATS)
def test_weak_columns_of_a_quantised_model(form):
    weights = weights_of(network())
    model = quantise(network(), form)
    plan = chosen(model, score=sft.scores.weak_columns(original=weights))
    rounded = {
        name: sft.quantised.quantiser_of(layer).dequantise(layer, torch.float32)
        for name, layer in ((name, model.get_submodule(name[0])) for name in NAMES)
    }
    assert columns_of(plan) == by_hand(model, weights, rounded, COUNT)
    sft.convert(model, plan)
    before = model[0].values.detach().clone()
    sft.quantised.start_from(model, weights)
    for name, what in plan.items():
        values = model.get_submodule(name[0]).values.detach()
        assert torch.equal(values, what.gather(weights[name]))
    assert not torch.equal(model[0].values, before)


def test_the_recipe_is_weak_columns():
    model, weights = network(), weights_of(network())
    settings = {"batches": batches(), "loss": loss, "density": 0.1}
    plan = sft.recipes.owq(model, quantised=3, **settings)
    assert plan == chosen(model, score=sft.scores.weak_columns(3))
    model = quantise(network(), "nf4")
    plan = sft.recipes.owq(model, original=weights, **settings)
    assert plan == chosen(model, score=sft.scores.weak_columns(original=weights))
    sft.convert(model, plan)
    sft.quantised.start_from(model, weights)
    model(batches()[0]).square().mean().backward()
    assert model[0].values.grad.shape == (2 * HIDDEN, 6)


def test_weak_columns_make_the_output_better():
    batch = torch.cat(batches())
    with torch.no_grad():
        wanted = network()(batch)
    off = {}
    for score in ("weak", "random"):
        model, weights = quantise(network(), "nf4"), weights_of(network())
        rule = sft.scores.weak_columns(original=weights) if score == "weak" else "random"
        settings = {} if score == "weak" else {"batches": None, "loss": None}
        sft.convert(model, chosen(model, score=rule, density=0.2, **settings))
        sft.quantised.start_from(model, weights)
        with torch.no_grad():
            off[score] = (model(batch) - wanted).norm()
    assert off["weak"] < 0.9 * off["random"]


def test_nf4_before_and_after_quantising_agree():
    pytest.importorskip("bitsandbytes")
    model, weights = network(), weights_of(network())
    before = chosen(model, score=sft.scores.weak_columns("nf4"))
    after = chosen(
        quantise(network(), "nf4", compress_statistics=False),
        score=sft.scores.weak_columns(original=weights),
    )
    shared = [
        len(set(before[name].index.tolist()) & set(after[name].index.tolist())) for name in NAMES
    ]
    assert sum(shared) >= sum(COUNT.values()) - 2  # the inputs of later layers are rounded, too


@pytest.mark.parametrize("score", ["random", "magnitude", "principal", "activation"])
def test_scores_of_weights_and_activations_are_those_of_the_dequantised_base(score):
    model = quantise(network(), "nf4")
    dense = network()
    with torch.no_grad():
        for name in NAMES:
            layer = model.get_submodule(name[0])
            quantiser = sft.quantised.quantiser_of(layer)
            dense.get_parameter(name).copy_(quantiser.dequantise(layer, torch.float32))
    settings = {} if score == "activation" else {"batches": None, "loss": None}
    for structure in ("columns", "entries"):
        ours = chosen(model, score=score, structure=structure, **settings)
        theirs = chosen(dense, score=score, structure=structure, **settings)
        if score == "activation":
            assert [*ours] == [*theirs]  # bitsandbytes multiplies in its own order
        else:
            assert ours == theirs


@pytest.mark.parametrize("score", ["gradient", "fisher", "synflow", "grasp", "snip"])
def test_scores_of_gradients_are_refused_by_name(score):
    model = quantise(network(), "nf4")
    with pytest.raises(ValueError, match=f"score: '{score}' needs the gradient of '0.weight'"):
        chosen(model, score=score)


def test_what_weak_columns_need_is_said():
    with pytest.raises(ValueError, match="quantised: say how the weights will be quantised"):
        sft.scores.weak_columns()
    with pytest.raises(ValueError, match="quantised: expected 'nf4', .* got 'nf5'"):
        sft.scores.weak_columns("nf5")
    with pytest.raises(ValueError, match="original: it has no '0.weight'"):
        chosen(network(), score=sft.scores.weak_columns(original={"1.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match="original: expected 128 × 64 numbers for '0.weight'"):
        chosen(network(), score=sft.scores.weak_columns(original={"0.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match="weights: it has no '0.weight'"):
        model = quantise(network(), "nf4")
        sft.convert(model, {"0.weight": sft.Rows([0])})
        sft.quantised.start_from(model, {})


def test_scores_of_layers():
    model, dense = quantise(network(), "nf4"), dense_twin(quantise(network(), "nf4"))
    ours = sft.layer_scores.snr(model)
    assert ours == pytest.approx(sft.layer_scores.snr(dense))
    magnitude = sft.layer_scores.total(model, "magnitude", layers="*")
    assert magnitude == pytest.approx(sft.layer_scores.total(dense, "magnitude", layers="*"))
    with pytest.raises(ValueError, match="score: 'fisher' needs the gradient of '0.weight'"):
        sft.layer_scores.total(model, "fisher", layers="*", batches=batches(), loss=loss)
    with pytest.raises(ValueError, match="model: '0' is quantised, and codes do not drift"):
        sft.layer_scores.drift(model, dense, layers="*")


class Denoiser(nn.Module):
    """Names as diffusers has them."""

    def __init__(self):
        super().__init__()
        self.time_embedding = nn.Linear(HIDDEN, HIDDEN)
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(HIDDEN, HIDDEN)})
        self.ff = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x):
        x = x + torch.tanh(self.time_embedding(x))
        return self.ff(x + self.attn1["to_q"](x))


def test_quest_trains_every_entry_of_time_embeddings_and_attention():
    plain = sft.recipes.quest(Denoiser())
    assert dict(plain) == {"time_embedding.weight": "all", "attn1.to_q.weight": "all"}
    model = quantise(Denoiser(), "nf4")
    before = {name: dense_twin(model).get_parameter(name) for name in [*plain, "ff.weight"]}
    for part, name in zip(("time", "attention"), plain):
        plan = sft.recipes.quest(model, parts=part)
        assert list(plan) == [name] and plan[name].density((HIDDEN, HIDDEN)) == 1.0
        sft.convert(model, plan)
        optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1)
        loss(model, batches()[0]).backward()
        optimizer.step()
        sft.merge_quantised(model, requantise=True)
    after = dense_twin(model)
    changed = {
        name: not torch.equal(after.get_parameter(name), was) for name, was in before.items()
    }
    assert changed == {**dict.fromkeys(plain, True), "ff.weight": False}
    with pytest.raises(ValueError, match="parts: expected 'time', 'attention' or both, got 'ff'"):
        sft.recipes.quest(model, parts="ff")
    with pytest.raises(ValueError, match="no name of its modules says time or attention"):
        sft.recipes.quest(network())
