"""Recipes in which entries train more or less: SPIDER, CoFiTune, RoAST, RoseLoRA; and those whose
deltas are no entries: LoFiT, SparseGrad.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.restated import restates

import sparse_ft as sft
from sparse_ft.recipes import parts
from sparse_ft.recipes.pages import soft_masks

STEPS, LR = 30, 1e-3


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


@pytest.fixture(scope="module")
def llama():
    return choosing_models.case("Llama")


def whole(model, names):
    shapes = {name: model.get_parameter(name).shape for name in names}
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}


@restates("spider")
def test_spider_pulls_every_entry_back_by_its_mask_after_each_step(bert):
    names = parts.weights_of(bert.model)
    masks = dense_scores.ratio(bert.model, names, bert.batches)
    process = sft.recipes.get("spider")(bert.model, bert.batches)
    ours = dense_recipes.trained_by_process(bert.model, process, bert.batches, STEPS, LR)

    def pull(dense, step):
        for name, mask in masks.items():
            origin, now = dense.origins[name], dense.values[name]
            dense.values[name] = origin * (1 - mask) + now * mask
            dense.weights[name].data.copy_(dense.values[name])

    dense = dense_recipes.trained_densely(
        bert.model, whole(bert.model, names), bert.batches, STEPS, LR, after=pull
    )
    assert dense_recipes.distance(ours, dense) < 1e-9
    once = dense_recipes.trained_densely(
        bert.model, whole(bert.model, names), bert.batches, STEPS, LR
    )
    assert dense_recipes.distance(ours, once) > 1e-3  # a mask of the gradient would be none


def test_spider_ranks_sizes_and_not_signed_numbers(bert):
    names = parts.weights_of(bert.model)
    process = sft.recipes.get("spider")(bert.model, bert.batches, density=0.1)
    ratio = dense_scores.ratio(bert.model, names, bert.batches)
    found = {name: process.plan[name].gather(ratio[name]) for name in process.plan}
    for name, expected in found.items():
        assert expected.min() >= ratio[name].flatten().kthvalue(
            round(0.9 * ratio[name].numel())
        ).values - 1e-12  # fmt: skip
    weights = dense_scores.weights_of(bert.model, names)
    mean = dense_scores.mean(dense_scores.gradients(bert.model, names, bert.batches))
    signed = {name: (rank(mean[name]) / rank(weights[name])).clamp(max=1) for name in names}
    assert any((signed[name] - ratio[name]).abs().max() > 0.1 for name in names)


def rank(values):
    return values.flatten().argsort(stable=True).argsort().view_as(values).double() + 1


def dropped(model, batch, rate):
    """The logits with dropout after every block."""
    hooks = [
        block.register_forward_hook(
            lambda module, inputs, output: (
                (F.dropout(output[0], rate, training=True), *output[1:])
                if isinstance(output, tuple)
                else F.dropout(output, rate, training=True)
            )
        )
        for block in model.bert.encoder.layer
    ]
    logits = model(**batch).logits.log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return logits


@restates("cofitune")
def test_cofitune_scales_the_update_and_not_the_gradient(bert):
    rate = 0.2  # of the inserted dropout: 0.003 hardly ever drops one of so few features
    recipe = sft.recipes.get("cofitune")
    process = recipe(bert.model, bert.batches, begin=0.5, end=1.0, dropout=rate)
    names = [n for n in parts.weights_of(bert.model) if ".layer.1." in n]
    names = [n for n in names if ".attention." not in n]
    assert set(process.plan) == set(names) == set(process.importance)
    again = recipe(bert.model, bert.batches, begin=0.5, end=1.0, dropout=rate)
    for name in names:
        assert torch.equal(again.importance[name], process.importance[name])
        assert 0 <= process.importance[name].min() and process.importance[name].max() <= 1
    ours = dense_recipes.trained_by_process(bert.model, process, bert.batches, STEPS, LR)
    factors = {name: 1 - process.importance[name] for name in names}

    def scaled(dense, step):
        dense.factors = {n: f.view(dense.weights[n].shape) for n, f in factors.items()}

    def trained(start):
        masks = whole(bert.model, names)
        return dense_recipes.trained_densely(
            bert.model, masks, bert.batches, STEPS, LR, after=scaled, start=start
        )

    dense = trained(lambda dense: scaled(dense, 0))
    assert dense_recipes.distance(ours, dense) < 1e-7  # factors are fp32
    unscaled = dense_recipes.trained_densely(
        bert.model, whole(bert.model, names), bert.batches, STEPS, LR
    )
    assert dense_recipes.distance(ours, unscaled) > 1e-3


def test_importance_is_the_gradient_of_the_divergence_of_two_dropped_passes(bert):
    names = [n for n in parts.weights_of(bert.model) if ".layer.0." in n]
    score = soft_masks.importance_by_dropout(0.2)
    model = copy.deepcopy(bert.model)
    weights = [model.get_parameter(name).requires_grad_(True) for name in names]
    (ours,) = score.objectives(model, bert.batches[0], 5)
    torch.manual_seed(5)
    first, second = dropped(model, bert.batches[0], 0.2), dropped(model, bert.batches[0], 0.2)
    plain = (first.exp() * (first - second)).sum() / 3
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours, weights, retain_graph=True, allow_unused=True),
                    torch.autograd.grad(plain, weights, allow_unused=True)):  # fmt: skip
        torch.testing.assert_close(a, b)
    assert len(first) == 3 and not torch.equal(first, second)


@restates("roast")
def test_roast_draws_by_the_fisher_of_the_whole_epoch_and_scales_updates(bert):
    names = parts.weights_of(bert.model)
    epoch, alpha, beta = 10, 0.6, 1.0
    process = sft.recipes.get("roast")(
        bert.model, bert.batches, epoch=epoch, alpha=alpha, beta=beta
    )
    ours = dense_recipes.trained_by_process(bert.model, process, bert.batches, STEPS, LR)
    fisher = {}
    draws = torch.Generator().manual_seed(0)

    def before(dense):
        for name, weight in dense.weights.items():
            fisher[name] = fisher.get(name, 0) + weight.grad.square()

    def after(dense, step):
        if step % epoch == 0:
            for name in names:
                place = (rank(fisher[name]) - 1) / (fisher[name].numel() - 1)
                chance = torch.sigmoid(2 * beta * (place - alpha))
                lots = torch.rand(chance.shape, generator=draws, dtype=torch.float64)
                dense.factors[name] = torch.where(lots < chance, 1 / chance, 0.0)
            fisher.clear()

    dense = dense_recipes.trained_densely(
        bert.model, whole(bert.model, names), bert.batches, STEPS, LR, after=after, before=before
    )
    assert dense_recipes.distance(ours, dense) < 1e-7  # factors are fp32
    unmasked = dense_recipes.trained_densely(
        bert.model, whole(bert.model, names), bert.batches, STEPS, LR
    )
    # 1/p on the gradient moves weights under Adam as far as no mask
    assert dense_recipes.distance(ours, unmasked) > LR


def test_roasts_first_batch_counts(bert):
    process = sft.recipes.get("roast")(bert.model, bert.batches, epoch=1)
    model = copy.deepcopy(bert.model)
    optimizer = process.start(model, LR)
    dense_scores.losses(model, bert.batches)[0].backward()
    optimizer.step()
    factors = process.step()
    assert set(factors) == set(process.plan)
    assert all(0 < (f > 0).double().mean() < 1 for f in factors.values())


@pytest.fixture(scope="module")
def with_lora(llama):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(copy.deepcopy(llama.model), config).double()
    return llama._replace(model=model)


@pytest.mark.filterwarnings("ignore:model. it has adapters of PEFT")
@restates("roselora")
def test_roselora_prunes_rows_of_a_and_columns_of_b_by_sensitivity(with_lora):
    total, beta, density = 30, 0.8, 0.25
    process = sft.recipes.get("roselora")(with_lora.model, density=density, total=total, beta=beta)
    ours = dense_recipes.trained_by_process(with_lora.model, process, with_lora.batches, STEPS, LR)
    names = list(process.plan)
    assert all("lora_" in name for name in names) and len(names) == 8
    rated = {}

    def before(dense):
        for name, weight in dense.weights.items():
            now = (weight.detach() * weight.grad).abs()
            rated[name] = beta * rated[name] + (1 - beta) * now if name in rated else now

    def after(dense, step):
        done = min(1.0, max(0.0, (step - 3) / (24 - 3)))
        share = density + (1 - density) * (1 - done) ** 3
        for name in names:
            dim = 1 if "lora_A" in name else 0
            size = rated[name].size(dim)
            lines = rated[name] if dim else rated[name].T
            mask = torch.stack([dense_recipes.top(line, max(1, round(share * size)))
                                for line in lines])  # fmt: skip
            dense.values[name] = dense.values[name] * (mask if dim else mask.T)
            dense.weights[name].data.copy_(dense.values[name])

    dense = dense_recipes.trained_densely(
        with_lora.model, whole(with_lora.model, names), with_lora.batches, STEPS, LR,
        after=after, before=before,
    )  # fmt: skip
    assert dense_recipes.distance(ours, dense) < 1e-9
    for name in names:
        kept = (ours.get_parameter(name) != 0).sum(1 if "lora_A" in name else 0)
        size = 16 if "lora_A" in name else ours.get_parameter(name).size(0)
        assert (kept <= round(density * size)).all(), name


def heads_by_factor(case, steps, lr, penalty):
    """LoFiT's first phase, by hooks on o_proj's input: ‖a‖ of every head."""
    model = copy.deepcopy(case.model).requires_grad_(False)
    factors = [torch.zeros(4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for layer, factor in zip(model.model.layers, factors):
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, inputs, factor=factor: (inputs[0] * (1 + factor.view(-1)),)
        )
    optimizer = torch.optim.AdamW(factors, lr, weight_decay=0.0)
    for step in range(steps):
        loss = dense_scores.losses(model, [case.batches[step % 2]])[0]
        (loss + penalty * sum(f.abs().sum() for f in factors)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack([f.detach().norm(dim=1) for f in factors])


@restates("lofit")
def test_lofit_trains_offsets_of_the_chosen_heads(llama):
    settings = {"steps": 5, "lr": 5e-2, "penalty": 1e-3}
    norms = heads_by_factor(llama, *settings.values())
    chosen = norms.flatten().topk(3).indices
    expected = {(int(n) // 4, int(n) % 4) for n in chosen}
    process = sft.recipes.get("lofit")(llama.model, llama.batches, heads=3, **settings)
    got = {(int(layer.split(".")[2]), head)
           for layer, part in process.parts.items() for head in part.heads}  # fmt: skip
    assert got == expected
    assert dense_recipes.distance(llama.model, choosing_models.case("Llama").model) == 0
    model = copy.deepcopy(llama.model)
    optimizer = process.start(model, LR, weight_decay=0.0)
    offsets = dense_offsets(llama, expected)
    for step in range(STEPS):
        dense_scores.losses(model, [llama.batches[step % 2]])[0].backward()
        optimizer.step()
        process.step()
        optimizer.zero_grad()
    trained = torch.cat([part.values.detach().flatten() for part in process.parts.values()])
    torch.testing.assert_close(trained, offsets, atol=1e-9, rtol=0)
    logits = model(**llama.batches[0]).logits
    sft.revert(model)
    attention = model.model.layers[min(expected)[0]].self_attn
    assert attention.o_proj.bias is not None and attention.v_proj.bias is None
    torch.testing.assert_close(model(**llama.batches[0]).logits, logits)


def dense_offsets(case, heads):
    """30 steps of AdamW on offsets, by hooks on o_proj's input."""
    model = copy.deepcopy(case.model).requires_grad_(False)
    by_layer = {}
    for layer, head in sorted(heads):
        by_layer.setdefault(layer, []).append(head)
    offsets = []
    for number, mine in by_layer.items():
        offset = torch.zeros(len(mine), 4, dtype=torch.float64, requires_grad=True)
        offsets.append(offset)

        def add(module, inputs, offset=offset, mine=mine):
            whole = torch.zeros(4, 4, dtype=torch.float64)
            return (inputs[0] + whole.index_copy(0, torch.tensor(mine), offset).view(-1),)

        model.model.layers[number].self_attn.o_proj.register_forward_pre_hook(add)
    optimizer = torch.optim.AdamW(offsets, LR, weight_decay=0.0)
    for step in range(STEPS):
        dense_scores.losses(model, [case.batches[step % 2]])[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([offset.detach().flatten() for offset in offsets])


@restates("sparsegrad")
def test_sparsegrad_trains_coordinates_of_the_gradients_own_basis(llama):
    process = sft.recipes.get("sparsegrad")(llama.model, llama.batches, density=0.05)
    names = [n for n in parts.weights_of(llama.model) if ".mlp." in n]
    assert {f"{layer}.weight" for layer in process.parts} == set(names)
    every = dense_scores.gradients(llama.model, names, llama.batches)
    bases, masks = {}, {}
    for name in names:
        gradients = [found[name] for found in every]
        left = torch.linalg.eigh(sum(g @ g.T for g in gradients))[1].flip(-1)
        right = torch.linalg.eigh(sum(g.T @ g for g in gradients))[1].flip(-1)
        turned = sum((left.T @ g @ right).abs() for g in gradients)
        masks[name] = dense_recipes.top(turned, round(0.05 * turned.numel()))
        bases[name] = left, right
        part = process.parts[name.removesuffix(".weight")]
        assert torch.equal(part.selection.mask(tuple(turned.shape)), masks[name])
    ours = dense_recipes.trained_by_process(llama.model, process, llama.batches, STEPS, LR)
    expected = in_basis(llama, bases, masks)
    for name in names:
        got = ours.get_parameter(name)
        torch.testing.assert_close(got, expected[name], atol=1e-9, rtol=0)
        assert (got - llama.model.get_parameter(name)).abs().max() > 1e-4


def in_basis(case, bases, masks):
    """The weights after 30 steps of AdamW on the chosen coordinates, through a dense transform."""
    model = copy.deepcopy(case.model).requires_grad_(False)
    values = {n: torch.zeros(int(m.sum()), dtype=torch.float64, requires_grad=True)
              for n, m in masks.items()}  # fmt: skip

    def weights():
        found = {}
        for name, (left, right) in bases.items():
            held = torch.zeros(masks[name].shape, dtype=torch.float64)
            held = held.masked_scatter(masks[name], values[name])
            found[name] = model.get_parameter(name) + left @ held @ right.T
        return found

    optimizer = torch.optim.AdamW(values.values(), LR, weight_decay=0.0)
    for step in range(STEPS):
        output = torch.func.functional_call(model, weights(), kwargs=case.batches[step % 2])
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach() for name, weight in weights().items()}
