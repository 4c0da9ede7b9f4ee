"""Recipes in which layers or tensors take turns: LISA, BAdam, IST, GreenTrainer."""

import copy
import itertools

import pytest
import torch
from helpers import choosing_models, dense_recipes, dense_scores
from helpers.restated import restates

import sparse_ft as sft
from sparse_ft.recipes import parts

STEPS, LR, EVERY = 30, 1e-3, 7
BLOCK = "bert.encoder.layer"


@pytest.fixture(scope="module")
def bert():
    return choosing_models.case("BERT")


def turns_densely(case, active_at, always=()):
    """Blocks by turns, densely: what is out of turn loses its moments.

    active_at(step): the blocks that train in this step, counted from 0.
    """
    model = copy.deepcopy(case.model)
    names = [n for n, _ in model.named_parameters() if n.startswith(BLOCK) or n in always]

    def masks(active):
        found = {}
        for name in names:
            on = name in always or any(name.startswith(f"{block}.") for block in active)
            found[name] = torch.full(model.get_parameter(name).shape, on)
        return found

    def after(dense, step):
        dense.reselect(masks(active_at(step)))

    return dense_recipes.trained_densely(
        case.model, masks(active_at(0)), case.batches, STEPS, LR, after=after
    )


def watched(case, process, look):
    """As `dense_recipes.trained_by_process`; look(optimizer, model) before each step."""
    model = copy.deepcopy(case.model)
    optimizer = process.start(model, LR, weight_decay=0.0)
    for step in range(STEPS):
        dense_scores.losses(model, [case.batches[step % 2]])[0].backward()
        look(optimizer, model)
        optimizer.step()
        process.step()
        optimizer.zero_grad()
    return sft.revert(model)


def assert_state_is_of(optimizer, model, active, always=()):
    """Only what is in turn has optimiser state."""
    names = {id(p): n for n, p in model.named_parameters()}
    held = {names[id(p)] for p, state in optimizer.state.items() if state}
    for name in held:
        assert name in always or any(name.startswith(f"{block}.") for block in active), name


@restates("badam")
def test_badam_takes_the_blocks_in_turn_and_frees_their_state(bert):
    process = sft.recipes.get("badam")(bert.model, every=EVERY)

    def block(step):
        return [f"{BLOCK}.{1 - step // EVERY % 2}"]

    def look(optimizer, model):
        assert_state_is_of(optimizer, model, block(process.steps))

    ours = watched(bert, process, look)
    assert dense_recipes.distance(ours, turns_densely(bert, block)) < 1e-9
    assert dense_recipes.distance(ours, bert.model) > LR


@restates("lisa")
def test_lisa_draws_blocks_and_frees_the_state_of_the_others(bert):
    process = sft.recipes.get("lisa")(bert.model, layers=1, every=EVERY, seed=3)
    always = [n for n, _ in bert.model.named_parameters() if not n.startswith(BLOCK)]
    assert set(process.plan) == {n for n, _ in bert.model.named_parameters()}
    seen = []

    def look(optimizer, model):
        active = process.schedule.active
        seen.append(active)
        assert_state_is_of(optimizer, model, active, always)
        for name, parameter in model.named_parameters():
            if name.startswith(BLOCK) and not name.startswith(f"{active[0]}."):
                assert parameter.grad is None and not parameter.requires_grad

    ours = watched(bert, process, look)
    dense = turns_densely(bert, lambda step: drawn_block(seed=3, window=step // EVERY), always)
    assert dense_recipes.distance(ours, dense) < 1e-9
    assert seen == [drawn_block(seed=3, window=step // EVERY) for step in range(STEPS)]
    assert len({tuple(active) for active in seen}) == 2


def drawn_block(seed, window):
    """One of the two blocks, by a lot of its own for every window."""
    lots = torch.Generator().manual_seed(seed * 1_000_003 + window)
    return [f"{BLOCK}.{int(torch.randperm(2, generator=lots)[0])}"]


@restates("ist")
def test_ist_learns_which_layers_to_draw_and_leaves_the_values_alone(bert):
    recipe = sft.recipes.get("ist")
    settings = {"layers": 1, "every": 5, "probe": 5, "candidates": 4, "density": 0.2}
    process = recipe(bert.model, bert.batches, **settings)
    expected = torch.zeros(2, dtype=torch.float64)
    draws = torch.Generator().manual_seed(0)
    turns = itertools.cycle(bert.batches)
    actives = []

    def draw():
        chances = expected.softmax(0)
        return sorted(torch.multinomial(chances, 1, generator=draws).tolist())

    def look(optimizer, model):
        nonlocal expected
        if process.steps == 0:
            actives.append(draw())
        elif process.steps % 5 == 0:
            expected, active = judged(process, model, base, expected, draw, next(turns))
            actives.append(active)
        assert process.active == actives[-1]
        torch.testing.assert_close(process.importance, expected)
        names = [f"{BLOCK}.{number}" for number in process.active]
        for name, parameter in model.named_parameters():
            if "values" in name:
                assert parameter.requires_grad == name.startswith(tuple(f"{n}." for n in names))

    base = copy.deepcopy(bert.model)
    ours = watched(bert, process, look)
    assert expected.abs().sum() > 0
    assert dense_recipes.distance(ours, bert.model) > LR
    chosen = dense_scores.gradient(bert.model, list(process.plan), bert.batches)
    for name, score in chosen.items():
        assert process.plan[name].kind == "columns"
        best = dense_recipes.top(score.sum(0), len(process.plan[name].index))
        chosen[name] = best.expand(score.shape)

    def masks(step):
        drawn = actives[min(step // 5, len(actives) - 1)]
        parts = tuple(f"{BLOCK}.{number}." for number in drawn)
        return {name: mask & name.startswith(parts) for name, mask in chosen.items()}

    dense = dense_recipes.trained_densely(
        bert.model, masks(0), bert.batches, STEPS, LR,
        after=lambda dense, step: dense.reselect(masks(step)),
    )  # fmt: skip
    assert dense_recipes.distance(ours, dense) < 1e-9


RESUMED = {
    "ist": {"layers": 1, "every": 3, "probe": 3, "density": 0.2},
    "roast": {"epoch": 3, "beta": 1.0},
    "greentrainer": {"epoch": 3},
    "lisa": {"layers": 1, "every": 3},
}


def trained(model, process, optimizer, batches, steps):
    for step in steps:
        dense_scores.losses(model, [batches[step % 2]])[0].backward()
        optimizer.step()
        process.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_goes_on_is_the_run_that_was_never_cut(name, bert):
    batches = bert.batches[:1] * 2  # IST begins its own turns through them anew
    runs = []
    for _ in range(2):
        model = copy.deepcopy(bert.model)
        process = sft.recipes.get(name)(model, batches, **RESUMED[name])
        runs.append((model, process, process.start(model, LR)))
    (model, process, optimizer), (other, again, after) = runs
    trained(model, process, optimizer, batches, range(5))
    saved = copy.deepcopy([each.state_dict() for each in (model, process, optimizer)])
    trained(model, process, optimizer, batches, range(5, 11))
    other.load_state_dict(saved[0])
    after.load_state_dict(saved[2])
    again.load_state_dict(saved[1])
    trained(other, again, after, batches, range(5, 11))
    assert dense_recipes.distance(sft.revert(model), sft.revert(other)) == 0


def test_of_steps_alone_roast_says_that_its_masks_are_missing(bert):
    process = sft.recipes.get("roast")(bert.model, bert.batches, epoch=3)
    with pytest.warns(UserWarning, match="roast: the masks of this epoch were not saved"):
        process.load_state_dict({"steps": 4})


def judged(process, model, base, importance, draw, batch):
    """IST's update, on a plain copy whose differences are weakened by hand."""
    plain = sft.revert(copy.deepcopy(model))
    trained = dict(plain.named_parameters())
    draws, rewards = [], []
    for _ in range(4):
        drawn = draw()
        weak = copy.deepcopy(plain).eval()
        for name in process.plan:
            number = int(name.split(".layer.")[1].split(".")[0])
            if number not in drawn:
                old = base.get_parameter(name)
                weak.get_parameter(name).data = old + 0.25 * (trained[name].detach() - old)
        draws.append(drawn)
        rewards.append(dense_scores.losses(weak, [batch])[0].detach().neg().exp())
    mean = torch.stack(rewards).mean()
    importance = importance.clone()
    for drawn, reward in zip(draws, rewards):
        importance[drawn] += reward - mean
    return importance, drawn_after(importance, draw)


def drawn_after(importance, draw):
    """The next turn, by the new importance, which `draw` reads from its own frame."""
    cell = draw.__closure__[draw.__code__.co_freevars.index("expected")]
    cell.cell_contents = importance
    return draw()


def values_of_tensors(case, names):
    found = dense_scores.mean(dense_scores.gradients(case.model, names, case.batches))
    return {name: float(g.square().sum()) for name, g in found.items()}


def test_greentrainer_takes_the_best_tensors_within_the_flops(bert):
    """Every combination tried: layers as a chain, each with its own gradient and the way to it."""
    names = parts.weights_of(bert.model)
    process = sft.recipes.get("greentrainer")(bert.model, bert.batches, share=0.3, epoch=5)
    model = copy.deepcopy(bert.model)
    process.start(model, LR)
    worth = values_of_tensors(bert, names)
    order, flops = chain(bert)
    assert set(names) < set(order)
    budget = int(0.3 * (sum(flops.values()) + sum(flops[n] for n in names)
                        - below(order, flops, names)))  # fmt: skip
    best = max(
        (chosen for size in range(len(names) + 1)
         for chosen in itertools.combinations(names[-9:], size)
         if cost(chosen, order, flops) <= budget),
        key=lambda chosen: sum(worth[name] for name in chosen),
    )  # fmt: skip
    reachable = sum(worth[name] for name in process.active)
    assert cost(process.active, order, flops) <= budget
    assert reachable >= sum(worth[name] for name in best) * (1 - 1e-9)


def chain(case):
    """Linear layers in the order they run, and the FLOPs of a forward of each."""
    order, flops, hooks = [], {}, []
    model = copy.deepcopy(case.model)
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def see(module, inputs, output, name=f"{path}.weight"):
                order.append(name)
                flops[name] = 2 * (output.numel() // output.size(-1)) * module.weight.numel()

            hooks.append(module.register_forward_hook(see))
    with torch.no_grad():
        model(**case.batches[0])
    return order, flops


def cost(chosen, order, flops):
    """The gradients of these, and the way from the loss down to the first of them."""
    if not chosen:
        return 0
    first = min(order.index(name) for name in chosen)
    return sum(flops[name] for name in chosen) + sum(flops[name] for name in order[first + 1 :])


def below(order, flops, names):
    """What no way down passes: up to and including the first target."""
    first = min(order.index(name) for name in names)
    return sum(flops[name] for name in order[: first + 1])


@restates("greentrainer")
def test_greentrainer_frees_what_is_out_of_turn_and_trains_the_rest_densely(bert):
    process = sft.recipes.get("greentrainer")(bert.model, bert.batches, share=0.3, epoch=10)
    seen = []

    def look(optimizer, model):
        seen.append(list(process.active))
        names = {id(p): n for n, p in model.named_parameters()}
        assert {names[id(p)] for p, s in optimizer.state.items() if s} <= set(process.active)

    ours = watched(bert, process, look)
    names = parts.weights_of(bert.model)
    shapes = {name: bert.model.get_parameter(name).shape for name in names}

    def masks(active):
        return {name: torch.full(shapes[name], name in active) for name in names}

    dense = dense_recipes.trained_densely(
        bert.model, masks(seen[0]), bert.batches, STEPS, LR,
        after=lambda dense, step: dense.reselect(masks(seen[min(step, STEPS - 1)])),
    )  # fmt: skip
    assert dense_recipes.distance(ours, dense) < 1e-9
