"""Layer scores: each against its formula, written out."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
from helpers import choosing_models, dense_scores  # noqa: E402

import sparse_ft as sft  # noqa: E402
from sparse_ft import layer_scores  # noqa: E402

BLOCKS = {"Llama": "model.layers", "BERT": "bert.encoder.layer", "GPT-2": "transformer.h"}


@pytest.mark.parametrize("score", ["fisher", "gradient_abs", "saliency"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_the_total_of_a_score(kind, score):
    case = choosing_models.case(kind)
    found = layer_scores.total(case.model, score, batches=case.batches)
    layers = [f"{BLOCKS[kind]}.{n}" for n in range(2)]
    assert list(found) == layers
    for layer in layers:
        names = [n for n, _ in case.model.named_parameters() if n.startswith(f"{layer}.")]
        dense = dense_scores.GENERAL[score](case.model, names, case.batches)
        assert found[layer] == pytest.approx(float(sum(s.sum() for s in dense.values())), rel=1e-5)


def test_layers_by_pattern_and_what_is_none():
    case = choosing_models.case("Llama")
    names = "model.layers.*.mlp"
    found = layer_scores.total(case.model, "magnitude", layers=names)
    assert list(found) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    with pytest.raises(ValueError, match="layers: '.*attn' matches no module"):
        layer_scores.total(case.model, "magnitude", layers="*.attn")
    with pytest.raises(ValueError, match="layers: the model has no nn.ModuleList"):
        layer_scores.total(nn.Linear(2, 2), "magnitude")
    with pytest.raises(ValueError, match="batches: score='fisher' needs"):
        layer_scores.total(case.model)


def test_drift():
    case = choosing_models.case("BERT")
    base = copy.deepcopy(case.model)
    with torch.no_grad():
        case.model.bert.encoder.layer[1].output.dense.weight.mul_(1.5)
    for before in (base, base.state_dict()):
        found = layer_scores.drift(case.model, before)
        layer = base.bert.encoder.layer[1]
        size = torch.cat([p.flatten() for p in layer.parameters()]).norm()
        moved = layer.output.dense.weight.norm() / 2
        assert list(found.values()) == pytest.approx([0.0, float(moved / size)])


def test_signal_to_noise():
    """A random matrix has no signal; one with a few large directions has."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 128, bias=False) for _ in range(2)))
    for layer in model:
        layer.weight.data = torch.randn(128, 64, generator=generator)
    rank_2 = torch.randn(128, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    model[1].weight.data += 5 * rank_2
    found = layer_scores.snr(model, targets="*.weight")
    values = torch.linalg.svdvals(model[1].weight.data)
    sigma = (values.quantile(0.75) - values.quantile(0.25)) / 1.349
    edge = sigma * (1 + 0.5**0.5)
    wanted = values[values > edge].sum() / values[values <= edge].sum().clamp(min=0) / values.max()
    if not (values <= edge).any():
        wanted = values.sum() / values.max()
    assert found["1.weight"] == pytest.approx(float(wanted), rel=1e-5)
    assert found["0.weight"] != found["1.weight"]


def test_conductance_adds_up_to_the_change_of_the_loss():
    """Of a layer through which everything flows, with many steps."""
    case = choosing_models.case("ViT")
    model, batch = case.model, case.batches[0]
    found = layer_scores.conductance(model, [batch], steps=200)
    whole = model(**batch).loss
    empty = model(pixel_values=batch["pixel_values"] * 0, labels=batch["labels"]).loss
    change = float((whole - empty).abs())
    assert found["vit.layers.1"] == pytest.approx(change, rel=0.02)
    tokens = choosing_models.case("Llama")
    assert min(layer_scores.conductance(tokens.model, tokens.batches).values()) > 0


def test_conductance_of_floating_point_inputs():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    loss = lambda m, x: m(x).square().mean()  # noqa: E731
    found = layer_scores.conductance(model, [x], layers=["0", "2"], loss=loss, steps=300)
    change = abs(float(loss(model, x) - loss(model, torch.zeros_like(x))))
    assert list(found.values()) == pytest.approx([change, change], rel=0.02)
    with pytest.raises(ValueError, match="steps: .*got 0"):
        layer_scores.conductance(model, [x], layers="0", steps=0)


@pytest.mark.parametrize("gates", [False, True])
def test_routing(gates):
    case = choosing_models.case("Qwen-MoE")
    batches = [{**batch, "attention_mask": torch.ones(3, 7)} for batch in case.batches]
    batches[1]["attention_mask"][0, 4:] = 0
    found = layer_scores.routing(case.model, batches, gates=gates)
    counts = torch.zeros(2, 4)
    for batch in batches:
        output = case.model(**batch, output_router_logits=True)
        for layer, logits in enumerate(output.router_logits):
            for token, row in enumerate(logits.view(3, 7, 4).flatten(0, 1)):
                if batch["attention_mask"].flatten()[token]:
                    best = row.topk(2)
                    amounts = best.values.softmax(0) if gates else torch.ones(2)
                    for expert, amount in zip(best.indices.tolist(), amounts.tolist()):
                        counts[layer, expert] += amount
    shares = counts / counts.sum(1, keepdim=True)
    assert list(found) == [f"model.layers.{n}.mlp.{e}" for n in range(2) for e in range(4)]
    assert list(found.values()) == pytest.approx(shares.flatten().tolist(), rel=1e-4)
    with pytest.raises(ValueError, match="model: expected a mixture of experts"):
        layer_scores.routing(nn.Linear(2, 2), batches)


@pytest.mark.parametrize("act", ["total", "conductance", "routing"])
def test_the_model_is_left_as_it_was(act):
    case = choosing_models.case("Qwen-MoE")
    before = {name: p.detach().clone() for name, p in case.model.named_parameters()}
    flags = [(p.requires_grad, p.grad) for p in case.model.parameters()]
    hooks = [len(m._forward_hooks) for m in case.model.modules()]
    state = torch.get_rng_state()
    getattr(layer_scores, act)(case.model, batches=case.batches)
    assert all(torch.equal(before[name], p) for name, p in case.model.named_parameters())
    assert flags == [(p.requires_grad, p.grad) for p in case.model.parameters()]
    assert hooks == [len(m._forward_hooks) for m in case.model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert sft.layer_scores is layer_scores
