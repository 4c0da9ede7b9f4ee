"""What public implementations of single methods have got wrong, and these recipes must not."""

import copy
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.exhaustive import slow
from torch import nn

import sparse_ft as sft
from sparse_ft.recipes import parts

sys.path.append(str(Path(__file__).resolve().parents[2]))
STEPS, LR = 30, 1e-3


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


def squares(model, batch):
    return model(batch).square().mean()


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 5, 12), (2, 3, 5, 12)])
def test_paca_takes_inputs_of_any_rank_and_merges(shape):
    """Its code takes three dimensions only and cannot be merged."""
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    plan = sft.recipes.get("paca")(model, budget=2, targets="*.weight")
    before, input = copy.deepcopy(model), torch.randn(shape, dtype=torch.float64)
    report = sft.convert(model, plan)
    assert report is not None
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, weight_decay=0.0)
    squares(model, input).backward()
    squares(before, input).backward()
    for name, what in plan.items():
        got = model.get_submodule(name.split(".")[0]).values.grad
        torch.testing.assert_close(got, what.gather(before.get_parameter(name).grad))
    optimizer.step()
    output = model(input)
    sft.revert(model)
    assert type(model[0]) is nn.Linear and torch.equal(model(input), output)
    for name, what in plan.items():
        changed = model.get_parameter(name) != before.get_parameter(name)
        assert not changed[~what.mask(tuple(changed.shape))].any() and changed.any()


def test_neuroada_holds_no_dense_copy_of_a_weight(bert):
    """Its code composes a dense weight a layer."""
    model = copy.deepcopy(bert.model)
    plan = sft.recipes.get("neuroada")(model)
    before = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    sft.convert(model, plan, origin=True)
    dense_scores.losses(model, bert.batches)[0].backward()
    own = [t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values())
           if t is not None and t.data_ptr() not in before]  # fmt: skip
    assert sum(t.numel() for t in own) == sum(len(what) for what in plan.values())


@pytest.mark.parametrize("name", ["speft_gradient", "speft_magnitude", "speft_taylor", "fish"])
def test_scores_of_all_weights_are_never_put_together(name, bert, monkeypatch):
    """SPEFT's code concatenates them."""
    sizes = []

    def seen(function):
        def call(tensors, *args, **kwargs):
            found = function(tensors, *args, **kwargs)
            sizes.append(found.numel())
            return found

        return call

    for each in ("cat", "concat", "stack", "hstack"):
        monkeypatch.setattr(torch, each, seen(getattr(torch, each)))
    plan = sft.recipes.get(name)(bert.model, bert.batches if name != "speft_magnitude" else None)
    weights = [bert.model.get_parameter(n).numel() for n in parts.weights_of(bert.model)]
    chosen = sum(len(what) for what in plan.values())
    assert max(sizes, default=0) < max(sum(weights) / 2, 2 * chosen)


@pytest.mark.skipif(sys.platform != "linux", reason="torch's events of memory are read on Linux")
def test_a_backward_of_many_entries_takes_no_square_of_their_number():
    """SPT's code multiplies nnz × nnz: 1.6 GB here."""
    from bench.memory import allocator_peak

    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    batches = [torch.randn(8, 512)]
    count = 20_000
    plan = sft.recipes.get("spt")(
        model, batches, density=count / 512**2, columns=500, loss=squares, targets="*.weight"
    )
    assert len(plan["0.weight"]) == count
    sft.convert(model, plan)
    peak, _ = allocator_peak(lambda: squares(model, batches[0]).backward())
    assert peak < 16 << 20


def test_the_gradient_of_a_bias_beside_a_sub_net_is_summed_over_the_tokens(bert):
    """LoSiA's code sums it over the wrong axis."""
    plan = sft.recipes.get("losia")(bert.model, bert.batches, also="bert.encoder.*.bias").plan
    model = copy.deepcopy(bert.model)
    sft.convert(model, plan)
    dense_scores.losses(model, bert.batches)[0].backward()
    names = [n for n in plan if n.endswith("bias")]
    dense = copy.deepcopy(bert.model)
    weights = [dense.get_parameter(n).requires_grad_(True) for n in names]
    expected = torch.autograd.grad(dense_scores.losses(dense, bert.batches)[0], weights)
    for name, gradient in zip(names, expected):
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def test_one_over_p_on_the_gradient_would_do_nothing_under_adam(bert):
    """What RoAST's code does: Adam divides it away again."""
    process = sft.recipes.get("roast")(bert.model, bert.batches, epoch=2, beta=1.0)
    ours = dense_recipes.trained_by_process(bert.model, process, bert.batches, STEPS, LR)
    names = parts.weights_of(bert.model)
    masks = {n: torch.ones(bert.model.get_parameter(n).shape, dtype=torch.bool) for n in names}

    def trained(factor):
        def before(dense):
            for weight in dense.weights.values():
                weight.grad *= factor

        return dense_recipes.trained_densely(
            bert.model, masks, bert.batches, STEPS, LR, before=before
        )

    plain, scaled = trained(1.0), trained(4.0)
    name = "bert.encoder.layer.1.output.dense.weight"  # whose gradients are well above eps
    pair = [model.get_parameter(name) for model in (plain, scaled)]
    assert (pair[0] - pair[1]).abs().max() < LR
    assert dense_recipes.distance(ours, plain) > 2 * LR


def test_fish_counts_single_examples_and_not_batches(bert):
    names = parts.weights_of(bert.model)
    batchwise = dense_scores.mean(
        dense_scores.gradients(bert.model, names, bert.batches), torch.square
    )
    plan = sft.recipes.get("fish")(bert.model, bert.batches, density=0.05)
    masks = dense_recipes.over_all(batchwise, 0.05)
    assert any(not torch.equal(plan[n].mask(tuple(m.shape)) if n in plan else m & False, m)
               for n, m in masks.items())  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="torch's events of memory are read on Linux")
def test_smt_chooses_in_the_memory_of_one_gradient():
    """Its code warms up by full fine-tuning: gradients of all weights, and moments."""
    from bench.memory import allocator_peak

    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(16)))
    batches = [torch.randn(4, 256)]
    settings = {"block_size": 32, "loss": squares, "targets": "*.weight"}
    sft.recipes.get("smt")(model, batches, **settings)
    peak, _ = allocator_peak(lambda: sft.recipes.get("smt")(model, batches, **settings))
    assert peak < 4 * 16 * 256**2 / 2


@pytest.mark.filterwarnings("ignore:model. it has adapters of PEFT")
def test_rosa_holds_no_transposed_copies():
    """Its code keeps the selected entries by rows and by columns."""
    peft = pytest.importorskip("peft")
    case = choosing_models.case("Llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(case.model, config).double()
    process = sft.recipes.get("rosa")(model, case.batches, density=0.5)
    before = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    process.start(model, LR)
    dense_scores.losses(model, case.batches)[0].backward()
    entries = sum(len(process.plan[n]) for n in process.plan if "base_layer" in n)
    held = {}
    for module in model.modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        state = getattr(module, "_sparse_ft_state", None)
        if state is not None:
            tensors += [getattr(state, field.name) for field in dataclasses.fields(state)]
            tensors.append(state.selection.index)
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in before:
                held[tensor.data_ptr()] = tensor.numel()
    # values, where they began, positions, and in the warm-up a factor
    assert 2 * entries <= sum(held.values()) <= 4 * entries


QUANTILES = ("quantile", "nanquantile", "kthvalue")


def test_a_global_budget_asks_for_no_quantile(bert, monkeypatch):
    """SNELLA's code finds its threshold by torch.quantile, which takes 2 ** 24 numbers."""

    def refuse(*args, **kwargs):
        raise RuntimeError("input tensor is too large")

    names = parts.weights_of(bert.model)
    masks = dense_recipes.over_all(dense_scores.magnitude(bert.model, names, None), 0.1)
    with monkeypatch.context() as patched:
        for each in QUANTILES:
            patched.setattr(torch, each, refuse)
            patched.setattr(torch.Tensor, each, refuse)
        plan = sft.select(
            bert.model, structure="entries", scope="global", score="magnitude", density=0.1
        )
    dense_recipes.assert_equal(bert.model, plan, masks)


@slow
def test_a_global_budget_of_more_entries_than_quantiles_take():
    side = 4200
    model = nn.Linear(side, side, bias=False)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(model.weight.detach().flatten(), 0.5)
    plan = sft.select(
        model, structure="entries", scope="global", score="magnitude", density=1e-3,
        targets="weight",
    )  # fmt: skip
    chosen = plan["weight"].gather(model.weight.detach()).abs()
    assert len(chosen) == round(1e-3 * side**2)
    rest = model.weight.detach().flatten().abs().index_fill(0, plan["weight"].index.long(), 0)
    assert rest.max() <= chosen.min()


@pytest.mark.parametrize("name", ["neuroada", "shira", "spiel", "s2ft", "rosa", "gps"])
def test_decay_pulls_differences_to_where_they_began(name):
    """Without a gradient a weight decays towards 0, and a difference not at all."""
    model = nn.Linear(6, 6, bias=False)
    start = model.weight.detach().clone()
    recipe = sft.recipes.get(name)
    sft.convert(model, {"weight": sft.Columns([1])}, origin=recipe.decay_to == "origin")
    optimizer = sft.SelectiveAdamW(
        model.parameters(), lr=1e-2, weight_decay=0.5, decay_to=recipe.decay_to
    )
    for _ in range(100):
        (model(torch.zeros(1, 6)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    left = 1.0 if recipe.decay_to == "origin" else 0.606  # (1 − 0.005) ** 100
    torch.testing.assert_close(model.weight[:, 1], left * start[:, 1], rtol=1e-3, atol=0)


def test_a_global_budget_has_a_floor_and_a_cap(bert):
    """Else a head whose gradients are the largest takes all of it."""
    names = parts.weights_of(bert.model)
    loud = {name: torch.rand(sft.matrix_shape(bert.model, name)) for name in names}
    loud[names[0]] += 10.0
    choose = {"structure": "entries", "scope": "global", "density": 0.01, "score": loud}
    assert list(sft.select(bert.model, targets=names, **choose)) == names[:1]
    bounded = sft.select(bert.model, targets=names, floor=0.005, cap=0.02, **choose)
    for name in names:
        share = len(bounded[name]) / loud[name].numel()
        assert 0.0 < share <= 0.02 + 1 / loud[name].numel()
