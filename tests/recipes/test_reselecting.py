"""Recipes that choose anew: 30 steps of LIFT, SpIEL, LoSiA and RoSA beside dense restatements, and
what others have got wrong.
"""

import copy

import pytest
import torch
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.dense_masked import BETAS
from helpers.restated import restates

import sparse_ft as sft
from sparse_ft.recipes import parts

STEPS, LR = 30, 1e-3


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


def principal(model, names, rank=2):
    """LIFT's mask by a whole SVD: (rows + columns) entries of a weight."""
    masks = {}
    for name, weight in dense_scores.weights_of(model, names).items():
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        low = (left[:, :rank] * sizes[:rank]) @ right[:rank]
        masks[name] = dense_recipes.top(low.abs(), sum(weight.shape))
    return masks


def lift_densely(case, at=10, **settings):
    names = parts.weights_of(case.model)

    def anew(dense, step):
        if step % 10 == at % 10:
            masks = principal(holder["model"], names)
            dense.reselect({n: m.view(dense.weights[n].shape) for n, m in masks.items()})

    holder = {}
    model = copy.deepcopy(case.model)
    holder["model"] = model
    return trained_in_place(model, principal(model, names), case.batches, anew, **settings)


def trained_in_place(model, masks, batches, after, **settings):
    """As `dense_recipes.trained_densely`, on the model itself, which `after` may look at."""
    from helpers.dense_masked import DenseMasked

    weights = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in masks)
        if name in masks:
            weights[name] = parameter
    shaped = {name: mask.reshape(weights[name].shape) for name, mask in masks.items()}
    dense = DenseMasked(weights, shaped, LR, **settings)
    for step in range(STEPS):
        dense_scores.losses(model, [batches[step % len(batches)]])[0].backward()
        before = {n: w.grad.detach().clone() for n, w in weights.items() if w.grad is not None}
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        dense.gradients = before
        dense.step()
        after(dense, step + 1)
    return model


def lift(case, **settings):
    process = sft.recipes.get("lift")(
        case.model, budget=sft.LikeLora(1), filter_rank=2, iterations=40, every=10
    )
    return dense_recipes.trained_by_process(
        case.model, process, case.batches, STEPS, LR, **settings
    )


@restates("lift")
def test_lift_is_the_dense_rule_and_none_of_its_slips(bert):
    ours = lift(bert, weight_decay=0.5)
    assert dense_recipes.distance(ours, lift_densely(bert, weight_decay=0.5)) < 1e-9
    slips = {
        "its decay never decays": lift_densely(bert),
        "one age a tensor": lift_densely(bert, weight_decay=0.5, by_entry=False),
        "the mask is updated one step early": lift_densely(bert, at=9, weight_decay=0.5),
    }
    for slip, model in slips.items():
        assert dense_recipes.distance(ours, model) > 1e-6, slip


def test_lift_keeps_the_parameters_and_goes_on_from_a_count(bert):
    model = copy.deepcopy(bert.model)
    process = sft.recipes.get("lift")(
        model, density=0.1, filter_rank=2, every=3, also="classifier.*"
    )
    optimizer = process.start(model, LR)
    before = [id(p) for p in model.parameters()]
    plan = dict(process.plan)
    for _ in range(3):
        dense_scores.losses(model, bert.batches)[0].backward()
        optimizer.step()
        report = process.step()
        optimizer.zero_grad()
    assert report is not None and sum(each.joined for each in report) > 0
    assert [id(p) for p in model.parameters()] == before
    assert process.state_dict() == {"steps": 3} and plan["classifier.weight"] == "all"
    process.load_state_dict({"steps": 5})
    assert process.step() is not None  # the sixth


def test_a_trainer_takes_a_process_as_a_schedule(bert):
    pytest.importorskip("transformers")
    from types import SimpleNamespace

    model = copy.deepcopy(bert.model)
    process = sft.recipes.get("lift")(model, density=0.1, filter_rank=2, every=2)
    process.convert(model)
    optimizer = sft.SelectiveAdamW(model.parameters(), LR)
    callback = sft.ScheduleCallback(process)
    state = SimpleNamespace(global_step=3)  # of a run that goes on
    callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
    before = dict(process.plan)
    dense_scores.losses(model, bert.batches)[0].backward()
    optimizer.step()
    callback.on_step_end(None, state, None)
    assert process.steps == 4
    holder = model.bert.encoder.layer[0].output.dense
    assert holder.selection != before["bert.encoder.layer.0.output.dense.weight"]


class Spiel:
    """SpIEL restated: every 8 steps, candidates looked for 3 steps before."""

    every, collect, rate, total = 8, 3, 0.5, 40

    def __init__(self, model, batches, names):
        self.model, self.batches, self.names = model, batches, names
        self.turns = 0
        self.sums = None

    def __call__(self, dense, step):
        if self.sums is not None:
            for name in self.names:
                gradient = dense.gradients[name].view(dense.masks[name].shape)
                kept = gradient.flatten()[self.found[name]]
                self.sums[name] += kept
                self.squares[name] += kept.square()
        if step % self.every == self.every - self.collect:
            self.look(dense)
        elif step % self.every == 0:
            self.exchange(dense, step)

    def look(self, dense):
        batch = [self.batches[self.turns % len(self.batches)]]
        self.turns += 1
        scores = dense_scores.gradient(self.model, self.names, batch)
        most = round(self.rate * max(int(m.sum()) for m in dense.masks.values()))
        self.found, self.sums, self.squares = {}, {}, {}
        for name in self.names:
            score = scores[name].masked_fill(dense.masks[name].view(scores[name].shape), -1.0)
            count = min(most, score.numel())
            self.found[name] = score.flatten().topk(count).indices.sort().values
            self.sums[name] = torch.zeros(count, dtype=torch.float64)
            self.squares[name] = torch.zeros(count, dtype=torch.float64)

    def exchange(self, dense, step):
        share = self.rate * (1 - step / self.total)
        joins = {}
        for name in self.names:
            mask = dense.masks[name].flatten()
            moved = (dense.values[name] - dense.origins[name]).flatten().abs()
            count = round(share * int(mask.sum()))
            leaving = moved.masked_fill(~mask, float("inf")).topk(count, largest=False).indices
            best = self.sums[name].abs().topk(count).indices
            joining = self.found[name][best]
            new = mask.clone()
            new[leaving] = False
            new[joining] = True
            joins[name] = joining, best, new.view(dense.masks[name].shape)
        dense.reselect({name: new for name, (_, _, new) in joins.items()}, restore=True)
        for name, (joining, best, _) in joins.items():
            age = self.collect
            mean = self.sums[name][best] / age
            square = self.squares[name][best] / age
            dense.exp_avg[name].view(-1)[joining] = mean * (1 - BETAS[0] ** age)
            dense.exp_avg_sq[name].view(-1)[joining] = square * (1 - BETAS[1] ** age)
            dense.age[name].view(-1)[joining] = age
        self.sums = None


@restates("spiel")
def test_spiel_is_the_dense_rule(bert):
    names = parts.weights_of(bert.model)
    recipe = sft.recipes.get("spiel")
    process = recipe(bert.model, bert.batches, density=0.1, every=8, collect=3, rate=0.5, total=40)
    ours = dense_recipes.trained_by_process(
        bert.model, process, bert.batches, STEPS, LR, weight_decay=0.5
    )
    model = copy.deepcopy(bert.model)
    masks = dense_recipes.by_layer(dense_recipes.random_scores(model, names), 0.1)
    dense_recipes.assert_equal(model, process.plan, masks)
    rule = Spiel(model, bert.batches, names)
    dense = trained_in_place(model, masks, bert.batches, rule, weight_decay=0.5, to_origin=True)
    # collected gradients are fp32
    assert dense_recipes.distance(ours, dense) < 2e-7
    assert dense_recipes.distance(ours, bert.model) > LR


def test_spiel_over_bf16_weights_keeps_what_it_learns():
    """Its code holds small differences in the dtype of the weight, where steps vanish."""
    case = choosing_models.case("BERT")
    model = case.model.bfloat16()
    process = sft.recipes.get("spiel")(
        model, case.batches, density=0.1, every=8, collect=3, total=40
    )
    optimizer = process.start(model, 1e-5)
    base = {n: p.detach().clone() for n, p in model.named_parameters() if "values" in n}
    for step in range(9):
        dense_scores.losses(model, [case.batches[step % 2]])[0].backward()
        optimizer.step()
        process.step()
        optimizer.zero_grad()
    values = [p for n, p in model.named_parameters() if n in base]
    assert all(v.dtype == torch.float32 for v in values)
    moved = torch.cat([(v - base[n]).abs().flatten() for n, v in zip(base, values)])
    assert (moved > 0).float().mean() > 0.5


def subnet(score, share):
    """LoSiA's greedy choice, both orders tried."""
    best, found = -1.0, None
    high, wide = round(share * score.size(0)), round(share * score.size(1))
    for rows_first in (True, False):
        if rows_first:
            rows = score.sum(1).topk(high).indices
            columns = score[rows].sum(0).topk(wide).indices
        else:
            columns = score.sum(0).topk(wide).indices
            rows = score[:, columns].sum(1).topk(high).indices
        mask = torch.zeros_like(score, dtype=torch.bool)
        mask[rows[:, None], columns] = True
        if score[mask].sum() > best:
            best, found = score[mask].sum(), mask
    return found


@restates("losia")
def test_losia_is_the_dense_rule(bert):
    names = parts.weights_of(bert.model)
    every, warm = 6, 3
    recipe = sft.recipes.get("losia")
    process = recipe(bert.model, bert.batches, share=0.25, every=every, warm=warm, seen=2)
    scores = dense_scores.sensitivity(bert.model, names, bert.batches)
    masks = {name: subnet(score, 0.25) for name, score in scores.items()}
    dense_recipes.assert_equal(bert.model, process.plan, masks)
    layers = [[n for n in names if f"layer.{number}." in n] for number in range(2)]
    layers.append(["bert.pooler.dense.weight"])
    model = copy.deepcopy(bert.model)
    warming = {}

    def anew(dense, step):
        if step % every == 0:
            layer = layers[(step // every - 1) % 3]
            scores = dense_scores.sensitivity(model, layer, bert.batches)
            dense.reselect({name: subnet(score, 0.25) for name, score in scores.items()})
            warming.update(dict.fromkeys(layer, step))
        for name, begin in list(warming.items()):
            share = (step - begin + 1) / (warm + 1)
            dense.factors[name] = min(1.0, share)

    dense = trained_in_place(model, masks, bert.batches, anew)
    ours = dense_recipes.trained_by_process(bert.model, process, bert.batches, STEPS, LR)
    # factors are fp32
    assert dense_recipes.distance(ours, dense) < 1e-8
    assert dense_recipes.distance(ours, bert.model) > LR


def test_losia_makes_no_dense_gradient_and_trains_no_bias(bert):
    model = copy.deepcopy(bert.model)
    process = sft.recipes.get("losia")(model, bert.batches)
    process.start(model, LR)
    dense_scores.losses(model, bert.batches)[0].backward()
    held = {n: p for n, p in model.named_parameters() if p.grad is not None}
    assert all(name.endswith("values") for name in held)
    for name, what in process.plan.items():
        rows, columns = what.matrix_shape
        assert len(what) == max(1, round(rows / 8)) * max(1, round(columns / 8)), name
    with pytest.raises(ValueError, match="share"):
        sft.recipes.get("losia")(bert.model, bert.batches, share=0.0)


def test_what_warms_up_in_losia_goes_on_warming(bert):
    made = []
    for _ in range(2):
        model = copy.deepcopy(bert.model)
        process = sft.recipes.get("losia")(model, bert.batches, every=2, warm=5, seen=1)
        made.append((model, process, process.start(model, LR)))
    (model, process, optimizer), (other, again, _) = made
    for _ in range(3):
        dense_scores.losses(model, bert.batches)[0].backward()
        optimizer.step()
        process.step()
        optimizer.zero_grad()
    again.load_state_dict(process.state_dict())
    factors = [
        [m._sparse_ft_state.factor for m in each.modules() if hasattr(m, "selection")]
        for each in (model, other)
    ]
    held = [[None if f is None else float(f.max()) for f in each] for each in factors]
    assert held[0] == held[1] and any(held[0])


def test_a_density_of_losia_is_that_of_the_crossings(bert):
    plan = sft.recipes.get("losia")(bert.model, bert.batches, density=0.25).plan
    assert all(len(what) * 4 == what.matrix_shape[0] * what.matrix_shape[1]
               for what in plan.values())  # fmt: skip


@pytest.fixture(scope="module")
def with_lora():
    peft = pytest.importorskip("peft")
    case = choosing_models.case("Llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    return case._replace(model=peft.get_peft_model(case.model, config).double())


@pytest.mark.filterwarnings("ignore:model. it has adapters of PEFT")
@restates("rosa")
def test_rosa_warms_the_low_rank_up_and_then_takes_the_entries(with_lora):
    case, warm = with_lora, 10
    process = sft.recipes.get("rosa")(case.model, case.batches, warm=warm, density=0.1)
    ours = dense_recipes.trained_by_process(case.model, process, case.batches, STEPS, LR)
    names = [n for n in process.plan if "base_layer" in n]
    factors = [n for n in process.plan if "lora_" in n]
    assert len(names) == 4 and len(factors) == 8
    model = copy.deepcopy(case.model)
    none = {n: torch.zeros(model.get_parameter(n).shape, dtype=torch.bool) for n in names}
    whole = {n: torch.ones(model.get_parameter(n).shape, dtype=torch.bool) for n in factors}

    def after(dense, step):
        if step == warm:
            gradients = dense_scores.gradients(model, names, case.batches)
            squares = dense_scores.mean(gradients, torch.square)
            dense.reselect(dense_recipes.by_layer(squares, 0.1))

    dense = trained_in_place(model, {**none, **whole}, case.batches, after)
    assert dense_recipes.distance(ours, dense) < 1e-9
    resumed = copy.deepcopy(case.model)
    later = sft.recipes.get("rosa")(resumed, case.batches, warm=5, density=0.1)
    later.start(resumed, LR)
    later.load_state_dict({"steps": 7})  # after the warm-up entries move
    factors = [m._sparse_ft_state.factor for m in resumed.modules() if hasattr(m, "selection")]
    assert factors and all(factor is None for factor in factors)
    held = sft.recipes.get("rosa")(case.model, case.batches, warm=100, density=0.1)
    still = dense_recipes.trained_by_process(case.model, held, case.batches, 5, LR)
    for name in names:
        assert torch.equal(still.get_parameter(name), case.model.get_parameter(name))


def test_indices_of_large_matrices_are_not_16_bits(with_lora):
    """RoSA's code stores positions in int16."""
    model = torch.nn.Sequential(torch.nn.Linear(300, 300, bias=False))
    batches = [torch.randn(4, 300)]
    plan = sft.select(
        model, structure="entries", density=0.01, batches=batches,
        loss=lambda model, batch: model(batch).square().mean(),
    )  # fmt: skip
    assert int(plan["0.weight"].index.max()) > 1 << 16 > 1 << 15
