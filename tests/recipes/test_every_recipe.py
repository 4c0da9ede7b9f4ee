"""Every recipe is restated densely by a test: those below, and those that say so in these files.
And what public implementations have got wrong: which test would fail of it.
"""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.choosing_models import Case
from helpers.restated import restates
from torch import nn

import sparse_ft as sft
from sparse_ft.recipes import parts
from sparse_ft.recipes.recipe import RECIPES

HERE = Path(__file__).parent
STEPS, LR = 30, 1e-3


def llama():
    return choosing_models.case("Llama")


def mixture():
    """In fp64, of which torch has no grouped product."""
    case = choosing_models.case("Qwen-MoE")
    case.model.set_experts_implementation("eager")
    case.model.double()
    return case


class Mixture(nn.Module):
    """Experts that are modules, two of three for each token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(24, 6)
        self.router = nn.Linear(6, 3, bias=False)
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
        self.head = nn.Linear(6, 24)

    def forward(self, input_ids, labels):
        hidden = self.embed(input_ids)
        gates, chosen = self.router(hidden).softmax(-1).topk(2)
        for number, expert in enumerate(self.experts):
            gate = (gates * (chosen == number)).sum(-1, keepdim=True)
            hidden = hidden + gate * expert(hidden).tanh()
        loss = nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())
        return {"loss": loss}


class Denoiser(nn.Module):
    """A diffusion model by the names of its parts."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(24, 6)
        self.time_embedding = nn.Linear(6, 6)
        self.attn1 = nn.Sequential(nn.Linear(6, 6))
        self.mlp = nn.Linear(6, 24)

    def forward(self, input_ids, labels):
        hidden = self.embed(input_ids)
        hidden = hidden + self.time_embedding(hidden.flip(1)).tanh()
        logits = self.mlp(hidden + self.attn1(hidden).tanh())
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def of_ones_own(kind):
    torch.manual_seed(0)
    return Case(kind().double(), choosing_models.case("Llama").batches)


def with_lora():
    peft = pytest.importorskip("peft")
    case = llama()
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    return case._replace(model=peft.get_peft_model(case.model, config).double())


def whole(model, names):
    return {n: torch.ones(model.get_parameter(n).shape, dtype=torch.bool) for n in names}


def layers_of_llama(*ends):
    return [f"model.layers.{number}.{end}.weight" for number in range(2) for end in ends]


def gate_and_up(recipe, case):
    names = layers_of_llama("mlp.gate_proj", "mlp.up_proj")
    return recipe(case.model), whole(case.model, names)


def routers(recipe, case):
    """One row for each of the experts beside it, in both layouts."""
    names = [
        n for n, _ in case.model.named_parameters() if n.endswith(("gate.weight", "router.weight"))
    ]
    names = [n for n in names if "shared" not in n]
    return recipe(case.model), whole(case.model, names)


def kept_in(outputs):
    return lambda module, inputs, output: outputs.append(output)


def path_to_the_input(case, batch, layers, steps=8):
    """|Σ (∂loss/∂output) Δoutput| of each layer, from no embedding to the whole one."""
    totals, before = [0.0] * len(layers), None
    for number in range(steps + 1):
        outputs = []
        hooks = [layer.register_forward_hook(kept_in(outputs)) for layer in layers]
        embedded = case.model.get_input_embeddings()(batch["input_ids"]).detach()
        share = (number / steps * embedded).requires_grad_()
        loss = case.model(inputs_embeds=share, labels=batch["labels"]).loss
        for hook in hooks:
            hook.remove()
        slopes = torch.autograd.grad(loss, outputs)
        here = list(zip(outputs, slopes))
        for at, (output, slope) in enumerate(here if before else ()):
            old, slope_before = before[at]
            change = (slope + slope_before) / 2 * (output - old)
            totals[at] += change.sum().item()
        before = here
    return torch.tensor(totals).abs()


def ram_mac(recipe, case):
    layers = case.model.model.layers
    worth = sum(path_to_the_input(case, batch, layers) for batch in case.batches)
    best = f"model.layers.{int(worth.argmax())}."
    names = [n for n, _ in case.model.named_parameters() if n.startswith(best)]
    return recipe(case.model, case.batches), whole(case.model, names)


def signal_to_noise(weight):
    """Singular values above the edge of a random matrix's, by those below."""
    values = torch.linalg.svdvals(weight)
    between = torch.quantile(values, 0.75) - torch.quantile(values, 0.25)
    ratio = min(weight.shape) / max(weight.shape)
    noise = values <= between / 1.349 * (1 + ratio**0.5)
    below = values[noise].sum() if noise.any() else 1.0
    return float(values[~noise].sum() / below / values.max())


def spectrum(recipe, case):
    names = []
    ends = [f"self_attn.{letter}_proj" for letter in "qkvo"]
    for end in [*ends, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]:
        pair = layers_of_llama(end)
        names.append(max(pair, key=lambda n: signal_to_noise(case.model.get_parameter(n).detach())))
    return recipe(case.model), whole(case.model, names)


def asymmetric(recipe, case):
    names = [n for n, _ in case.model.named_parameters() if ".lora_B." in n]
    return recipe(case.model), whole(case.model, names)


def lora_sp(recipe, case):
    """Half of the factors, by a lot: all A, then all B."""
    every = [n for n, _ in case.model.named_parameters()]
    factors = [n for half in "AB" for n in every if f".lora_{half}." in n]
    lots = torch.randperm(8, generator=torch.Generator().manual_seed(5))[:4]
    return recipe(case.model, seed=5), whole(case.model, [factors[int(at)] for at in lots])


def sketched(recipe, case):
    """Of the model as the recipe leaves it: each input goes to one rank, with a sign."""
    plan = recipe(case.model, seed=5)
    lots = torch.Generator().manual_seed(5)
    for name, weight in case.model.named_parameters():
        if ".lora_A." in name:
            to = torch.randint(4, (16,), generator=lots)
            signs = torch.randint(2, (16,), generator=lots) * 2 - 1
            assert torch.equal(weight, nn.functional.one_hot(to, 4).T * signs.double())
    names = [n for n, _ in case.model.named_parameters() if ".lora_B." in n]
    return plan, whole(case.model, names)


def experts(model, share, batches):
    """Masks of the fewest experts of each layer whose shares of the choices add up to `share`."""
    masks = {}
    for layer, shares in enumerate(dense_recipes.shares_of_experts(model, batches)):
        for end in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{end}"
            shape = model.get_parameter(name).shape
            masks[name] = torch.zeros(shape, dtype=torch.bool)
            masks[name][list(dense_recipes.fewest(shares, share))] = True
            masks[name] = masks[name].view(sft.matrix_shape(model, name))
    return masks


def esft(recipe, case):
    plan = recipe(case.model, case.batches, share=0.6)
    return plan, experts(case.model, 0.6, case.batches)


def ceft(recipe, case):
    """The routers first, by torch; then the experts that they choose."""
    names = [f"model.layers.{number}.mlp.gate.weight" for number in range(2)]
    expected = dense_recipes.full_run(case, names, 4, 0.05)
    before = copy.deepcopy(case.model)
    plan = recipe(case.model, case.batches, share=0.6, steps=4, lr=0.05)
    assert dense_recipes.distance(case.model, expected) < 1e-9
    assert dense_recipes.distance(case.model, before) > 0.05
    return plan, experts(expected, 0.6, case.batches)


def fedselect(recipe, case):
    """Of a client's second round: its entries of the first, and as many others."""
    names = parts.weights_of(case.model)
    base = copy.deepcopy(case.model)
    once = dense_recipes.full_run(case, names, 3, LR)
    twice = dense_recipes.full_run(case, names, 6, LR)
    first = dense_recipes.by_layer(dense_recipes.moved(once, base, names), 0.1)
    scores = dense_recipes.moved(twice, once, names)
    masks = {}
    for name, score in scores.items():
        others = dense_recipes.top(score.masked_fill(first[name], -1.0), round(0.1 * score.numel()))
        masks[name] = first[name] | others
    previous = recipe(once, base=base, density=0.1)
    case.model.load_state_dict(twice.state_dict())
    return recipe(case.model, base=once, previous=previous, density=0.1), masks


def owq(recipe, case):
    """(XXᵀ)_jj ‖W_:j − Ŵ_:j‖², Ŵ the nearest of 16 numbers between the ends of each row."""
    driven, hooks = {}, []
    names = parts.weights_of(case.model)
    for name in names:

        def see(module, inputs, output, name=name):
            driven[name] = driven.get(name, 0) + inputs[0].flatten(0, -2).square().sum(0)

        module = case.model.get_submodule(name.removesuffix(".weight"))
        hooks.append(module.register_forward_hook(see))
    dense_scores.losses(case.model, case.batches)
    for hook in hooks:
        hook.remove()
    masks = {}
    for name, weight in dense_scores.weights_of(case.model, names).items():
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
        step = (high - low) / 15
        rounded = ((weight - low) / step).round() * step + low
        score = driven[name] * (weight - rounded).square().sum(0)
        best = dense_recipes.top(score, round(0.2 * weight.size(1)))
        masks[name] = best.expand(weight.shape)
    return recipe(case.model, case.batches, quantised=4, density=0.2), masks


def quest(recipe, case):
    names = ["time_embedding.weight", "attn1.0.weight"]
    return recipe(case.model), whole(case.model, names)


def bert():
    return choosing_models.case("BERT")


RULES = {
    "gate_and_up": (gate_and_up, [llama]),
    "routers": (routers, [mixture, lambda: of_ones_own(Mixture)]),
    "ram_mac": (ram_mac, [llama]),
    "spectrum": (spectrum, [llama]),
    "asymmetric": (asymmetric, [with_lora]),
    "lora_sp": (lora_sp, [with_lora]),
    "sketched": (sketched, [with_lora]),
    "esft": (esft, [mixture]),
    "ceft": (ceft, [mixture]),
    "fedselect": (fedselect, [bert]),
    "owq": (owq, [bert]),
    "quest": (quest, [lambda: of_ones_own(Denoiser)]),
}


@pytest.mark.filterwarnings("ignore:model. it has adapters of PEFT")
@pytest.mark.parametrize("name", RULES)
@restates(*RULES)
def test_the_plan_and_30_steps_are_those_of_the_rule(name):
    rule, cases = RULES[name]
    recipe = sft.recipes.get(name)
    for build in cases:
        case = build()
        plan, masks = rule(recipe, case)
        dense_recipes.assert_trains(case, plan, masks, recipe.decay_to)


def functions_of(path):
    """The functions of a file of tests, by name."""
    spec = importlib.util.spec_from_file_location(f"looked_at_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: what for name, what in vars(module).items() if name.startswith("test_")}


def test_every_recipe_is_restated():
    """A new one needs its rule in `RULES`, or a test that says `@restates(…)`."""
    restated = set()
    for path in sorted(HERE.glob("test_*.py")):
        for test in functions_of(path).values():
            restated |= set(getattr(test, "restates", ()))
    assert restated == set(RECIPES)


SLIPS = {
    "LISA: a callback never frees the state": "test_turns.test_lisa_draws_blocks_and_frees",
    "S2FT: rows and columns swapped": "test_static_pages.test_s2ft_couples_rows_and_columns",
    "S2FT: breaks under grouped queries": "test_static_pages.test_s2ft_couples_rows_and_columns",
    "S2FT: breaks accumulation": "test_static_pages.test_gradients_of_s2ft_accumulate",
    "PaCA: inputs of three dimensions only": "test_slips.test_paca_takes_inputs_of_any_rank",
    "PaCA: cannot be merged": "test_slips.test_paca_takes_inputs_of_any_rank_and_merges",
    "LoSiA: a dense gradient is made": "test_reselecting.test_losia_makes_no_dense_gradient",
    "LoSiA: bias summed over the wrong axis": "test_slips.test_the_gradient_of_a_bias_beside",
    "SMT: shapes of one family": "test_presets.test_smt_takes_weights_smaller_than_a_block",
    "SMT: the memory of full fine-tuning": "test_slips.test_smt_chooses_in_the_memory_of_one",
    "SMT: an argument misspelt": "test_catalogue.test_wrong_names_are_refused_with_the_way_out",
    "SMT: |mean of g|, not mean of |g|": "test_presets.test_smt_ranks_blocks_by_the_size",
    "ESFT: normalised over layers": "test_static_pages.test_esft_takes_the_fewest_experts",
    "GPS: dense gradient times a mask": "test_presets.test_a_mask_of_a_gradient_keeps_no_dense",
    "NeuroAda: a dense copy a layer": "test_slips.test_neuroada_holds_no_dense_copy_of_a_weight",
    "SPEFT: all scores concatenated": "test_slips.test_scores_of_all_weights_are_never_put",
    "SPEFT: GraSP's sign": "test_presets.test_grasp_has_the_sign_of_the_paper",
    "LIFT: one age a tensor": "test_reselecting.test_lift_is_the_dense_rule_and_none_of_its",
    "LIFT: never decays": "test_reselecting.test_lift_is_the_dense_rule_and_none_of_its",
    "LIFT: one step early": "test_reselecting.test_lift_is_the_dense_rule_and_none_of_its",
    "SPT: a product of nnz by nnz": "test_slips.test_a_backward_of_many_entries_takes_no_square",
    "SpIEL: broken in bf16": "test_reselecting.test_spiel_over_bf16_weights_keeps_what_it",
    "RoSA: positions in 16 bits": "test_reselecting.test_indices_of_large_matrices_are_not",
    "RoSA: transposed copies": "test_slips.test_rosa_holds_no_transposed_copies",
    "RoAST: 1/p on the gradient": "test_slips.test_one_over_p_on_the_gradient_would_do_nothing",
    "RoAST: its first batch is lost": "test_soft_masks.test_roasts_first_batch_counts",
    "SNELLA: a limit of quantiles": "test_slips.test_a_global_budget_asks_for_no_quantile",
    "OWQ: its backward fails": "test_every_recipe.test_the_plan_and_30_steps_are_those",
    "GreenTrainer: not optimal": "test_turns.test_greentrainer_takes_the_best_tensors_within",
    "SPIDER: signed ranks": "test_soft_masks.test_spider_ranks_sizes_and_not_signed_numbers",
    "CoFiTune: mask on the gradient": "test_soft_masks.test_cofitune_scales_the_update",
    "LoFiT: a bias of v": "test_soft_masks.test_lofit_trains_offsets_of_the_chosen_heads",
    "FIM: first batch, no mask": "test_whole.test_surgical_fim_sums_over_all_batches_examples",
    "FISH: squares of batches": "test_slips.test_fish_counts_single_examples_and_not_batches",
    "Decay to 0 of a difference": "test_slips.test_decay_pulls_differences_to_where_they_began",
    "A global budget without a floor": "test_slips.test_a_global_budget_has_a_floor_and_a_cap",
}


def test_what_others_have_got_wrong_has_a_test_each():
    names = {}
    for place in SLIPS.values():
        stem, _, start = place.partition(".")
        if stem not in names:
            names[stem] = functions_of(HERE / f"{stem}.py")
        assert any(name.startswith(start) for name in names[stem]), place
