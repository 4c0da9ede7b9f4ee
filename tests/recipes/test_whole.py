"""Recipes that train whole modules: which they are, and 30 steps of them."""

import pytest
import torch
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.restated import restates

import sparse_ft as sft
from sparse_ft.recipes import parts

STEPS, LR = 30, 1e-3


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


@pytest.fixture(scope="module")
def llama():
    return choosing_models.case("Llama")


def assert_trains_whole(case, plan, names):
    """The plan trains these whole, and 30 steps of it are those of dense training."""
    assert set(plan) == set(names) and set(plan.values()) == {"all"}
    masks = {n: torch.ones(case.model.get_parameter(n).shape, dtype=torch.bool) for n in plan}
    ours = dense_recipes.trained_by_plan(case.model, plan, case.batches, STEPS, LR)
    dense = dense_recipes.trained_densely(case.model, masks, case.batches, STEPS, LR)
    assert dense_recipes.distance(ours, dense) < 1e-9
    assert dense_recipes.distance(ours, case.model) > LR


def llama_names(*ends):
    return [f"model.layers.{n}.{end}.weight" for n in range(2) for end in ends]


ATTENTION = [f"self_attn.{letter}_proj" for letter in "qkvo"]


@restates("attention_only")
def test_attention_only(llama, bert):
    plan = sft.recipes.get("attention_only")(llama.model)
    assert_trains_whole(llama, plan, llama_names(*ATTENTION))
    plan = sft.recipes.get("attention_only")(bert.model)
    assert all(".attention." in name for name in plan) and len(plan) == 8
    with pytest.raises(ValueError, match="targets="):
        sft.recipes.get("attention_only")(choosing_models.case("convnet").model)


@pytest.mark.parametrize(
    "kind, ends",
    [
        ("Llama", ["gate_proj.weight", "up_proj.weight"]),
        ("BERT", ["intermediate.dense.weight"]),
        ("GPT-2", ["mlp.c_fc.weight"]),
        ("Phi-3", ["mlp.gate_up_proj.weight"]),
        ("GPT-NeoX", ["mlp.dense_h_to_4h.weight"]),
        ("ViT", ["intermediate.dense.weight", "mlp.fc1.weight"]),
    ],
)
def test_gate_and_up_are_known_by_their_shapes(kind, ends):
    case = choosing_models.case(kind)
    names = [n for n, _ in case.model.named_parameters() if n.endswith(tuple(ends))]
    plan = sft.recipes.get("gate_and_up")(case.model)
    assert set(plan) == set(names) and names


def test_routers_are_those_of_the_experts():
    case = choosing_models.case("Qwen-MoE")
    plan = sft.recipes.get("routers")(case.model)
    assert dict(plan) == {f"model.layers.{n}.mlp.gate.weight": "all" for n in range(2)}
    with pytest.raises(ValueError, match="routers"):
        sft.recipes.get("routers")(choosing_models.case("BERT").model)


@restates("hft")
def test_hft_trains_half_of_each_kind_in_all_and_about_half_of_each_block(llama):
    recipe = sft.recipes.get("hft")
    plan = recipe(llama.model)
    assert_trains_whole(llama, plan, list(plan))
    for number in range(2):
        inside = [name for name in plan if f"layers.{number}." in name]
        assert sum("self_attn" in name for name in inside) == 2
        assert sum("mlp" in name for name in inside) == 1 + number  # half of three, in turn
    assert recipe(llama.model) == plan
    assert any(recipe(llama.model, seed=seed) != plan for seed in (1, 2, 3))


@restates("spafit")
def test_spafit_frees_more_from_block_to_block(bert):
    plan = sft.recipes.get("spafit")(bert.model, frozen=0.0, biases=0.5)
    block = "bert.encoder.layer"
    every = [name for name, _ in bert.model.named_parameters()]
    biases = [n for n in every if n.startswith(f"{block}.0.") and n.endswith("bias")]
    assert_trains_whole(bert, plan, biases + [n for n in every if n.startswith(f"{block}.1.")])
    with pytest.raises(ValueError, match="frozen"):
        sft.recipes.get("spafit")(bert.model, frozen=1.0, biases=0.0)


def fisher_by_block(case, batches):
    names = [n for n, _ in case.model.named_parameters() if ".layer." in n]
    model = case.model
    found = {0: 0.0, 1: 0.0}
    for batch in dense_scores.alone(batches):
        weights = [model.get_parameter(name).requires_grad_(True) for name in names]
        gradients = torch.autograd.grad(model(**batch).loss, weights, allow_unused=True)
        for name, gradient in zip(names, gradients):
            block = int(name.split(".layer.")[1].split(".")[0])
            found[block] += 0.0 if gradient is None else float(gradient.square().sum())
    return found


@restates("surgical_fim")
def test_surgical_fim_sums_over_all_batches_examples_and_the_mask(bert):
    recipe = sft.recipes.get("surgical_fim")
    worth = fisher_by_block(bert, bert.batches)
    best = max(worth, key=worth.get)
    every = [name for name, _ in bert.model.named_parameters()]
    plan = recipe(bert.model, bert.batches)
    assert_trains_whole(bert, plan, [n for n in every if f"encoder.layer.{best}." in n])
    got = sft.layer_scores.total(bert.model, "fisher", batches=bert.batches)
    torch.testing.assert_close(
        torch.tensor(list(got.values())), torch.tensor(list(worth.values())) / 6
    )
    # what a released version does: the first batch, or no mask, gives other numbers
    first = sft.layer_scores.total(bert.model, "fisher", batches=bert.batches[:1])
    unmasked = [{k: v for k, v in b.items() if k != "attention_mask"} for b in bert.batches]
    without = sft.layer_scores.total(bert.model, "fisher", batches=unmasked)
    for slipped in (first, without):
        name = next(iter(got))
        assert abs(slipped[name] - got[name]) > 1e-5 * got[name]


def test_a_share_of_the_blocks_is_theirs_of_the_entries(llama):
    recipe = sft.recipes.get("ram_mac")
    assert len(recipe(llama.model, llama.batches, density=1.0)) == 2 * len(
        recipe(llama.model, llama.batches, density=0.5)
    )


@restates("fpf")
def test_fpf_takes_the_weights_with_the_largest_fisher(bert):
    names = parts.weights_of(bert.model)
    fisher = dense_scores.fisher(bert.model, names, bert.batches)
    ranked = sorted(names, key=lambda name: -float(fisher[name].sum()))
    plan = sft.recipes.get("fpf")(bert.model, bert.batches, modules=3)
    assert_trains_whole(bert, plan, ranked[:3])


@pytest.fixture
def with_lora(llama):
    import copy

    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True)
    return llama._replace(model=peft.get_peft_model(copy.deepcopy(llama.model), config))


def test_factors_of_an_adapter(with_lora):
    model = with_lora.model
    seconds = {n for n, _ in model.named_parameters() if ".lora_B." in n}
    firsts = {n for n, _ in model.named_parameters() if ".lora_A." in n}
    half = sft.recipes.get("lora_sp")(model)
    assert len(half) == 4 and set(half) <= seconds | firsts
    logits = model(**with_lora.batches[0]).logits
    sketch = sft.recipes.get("sketched")(model)
    assert set(sketch) == seconds
    for name in firsts:
        weight = model.get_parameter(name)
        assert torch.equal(weight.abs().sum(0), torch.ones(16).double())  # one ±1 an input
    assert torch.equal(model(**with_lora.batches[0]).logits, logits)
    torch.nn.init.ones_(model.get_parameter(min(seconds)))
    with pytest.raises(ValueError, match="trained already"):
        sft.recipes.get("sketched")(model)


def test_without_an_adapter_they_say_so(llama):
    for name in ("asymmetric", "lora_sp", "sketched"):
        with pytest.raises(ValueError, match="PEFT first"):
            sft.recipes.get(name)(llama.model)
