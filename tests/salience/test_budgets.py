"""Each budget against a sort of everything put together."""

import math
import warnings

import pytest
import torch
from torch import nn

import sparse_ft as sft

SHAPES = {"a": (6, 10), "b": (9, 4), "c": (5, 13)}
BLOCK = (2, 3)


class Three(nn.Module):
    """Weights of several shapes; `scale` makes one worth more than the others."""

    def __init__(self, dtype=torch.float32, scale=(1.0, 3.0, 0.2)):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for (name, shape), size in zip(SHAPES.items(), scale):
            numbers = torch.randn(shape, generator=generator, dtype=torch.float64) * size
            setattr(self, name, nn.Parameter(numbers.to(dtype)))


def choose(model, budget, structure="entries", score="magnitude", **settings):
    return sft.select(
        model,
        budget=budget,
        structure=structure,
        score=score,
        targets=list(SHAPES),
        block_size=BLOCK,
        **settings,
    )


def units(model, name, structure):
    """[(worth, entries, number)] of every unit of a weight, by hand."""
    score = model.get_parameter(name).detach().abs().double()
    rows, columns = score.shape
    if structure == "entries":
        return [(float(x), 1, n) for n, x in enumerate(score.flatten())]
    if structure == "tensors":
        return [(float(score.sum()), score.numel(), 0)]
    lines = {"rows": score, "columns": score.T}.get(structure)
    if lines is not None:
        return [(float(line.sum()), len(line), n) for n, line in enumerate(lines)]
    places = [(r, c) for r in range(0, rows, BLOCK[0]) for c in range(0, columns, BLOCK[1])]
    tiles = [score[r : r + BLOCK[0], c : c + BLOCK[1]] for r, c in places]
    return [(float(tile.sum()), tile.numel(), n) for n, tile in enumerate(tiles)]


def numbers(model, plan, structure):
    """{name: numbers of the units that train}."""
    found = {}
    for name, selection in plan.items():
        if selection == "all":
            found[name] = [0]
        elif structure == "blocks":
            across = -(-SHAPES[name][1] // BLOCK[1])
            found[name] = (selection.index[:, 0] * across + selection.index[:, 1]).tolist()
        else:
            found[name] = selection.index.tolist()
    return found


def by_hand(model, names, structure, most=None, entries=None, share=None, bounds=(0, 1.0), scale=1):
    """The best of all units of `names`, one after the other."""
    every = []
    for name in names:
        mine = units(model, name, structure)
        size = {"mean": sum(w for w, _, _ in mine) / len(mine), "max": max(mine)[0]}
        size["norm"] = math.sqrt(sum(w * w for w, _, _ in mine))
        every += [(w / size.get(scale, 1), n, name, number) for w, n, number in mine]
    every.sort(key=lambda unit: -unit[0])
    count = {name: len(units(model, name, structure)) for name in names}
    floor, cap = ({n: round(b * c) for n, c in count.items()} for b in bounds)
    first = []
    for name in names:
        first += [unit for unit in every if unit[2] == name][: floor[name]]
    taken, room, reached = [], entries, 0.0
    total = sum(unit[0] for unit in every)
    for unit in first + [unit for unit in every if unit not in first]:
        if sum(one[2] == unit[2] for one in taken) >= cap[unit[2]]:
            continue
        if most is not None and len(taken) == most:
            break
        if room is not None and unit[1] > room:
            break
        if share is not None and reached >= share * total * (1 - 1e-12):
            break
        taken.append(unit)
        reached += unit[0]
        room = None if room is None else room - unit[1]
    found = {name: sorted(u[3] for u in taken if u[2] == name) for name in names}
    return {name: chosen for name, chosen in found.items() if chosen}


STRUCTURES = ["entries", "rows", "columns", "blocks", "tensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_global_number_of_units(structure, dtype):
    model = Three(dtype, scale=(1.0, 3.0, 0.2))
    for most in (1, 2, 3, 7, 40):
        everything = sum(len(units(model, name, structure)) for name in SHAPES)
        if most > everything:
            continue
        plan = choose(model, most, structure, scope="global")
        if dtype == torch.bfloat16 and structure == "entries":  # equal ones are drawn
            sizes = model.a.new_tensor([u[0] for n in SHAPES for u in units(model, n, structure)])
            chosen = torch.cat([plan[n].gather(model.get_parameter(n)).abs() for n in plan])
            assert torch.equal(chosen.sort().values, sizes.sort().values[-most:])
            continue
        assert numbers(model, plan, structure) == by_hand(model, SHAPES, structure, most)
        assert set(plan.left) == SHAPES.keys() - plan.keys()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("density", [0.05, 0.3, 0.77])
def test_a_global_share_of_the_entries(structure, density):
    model = Three()
    plan = choose(model, density, structure, scope="global")
    entries = round(density * sum(r * c for r, c in SHAPES.values()))
    wanted = by_hand(model, SHAPES, structure, entries=entries)
    if not wanted:  # not even one tensor: the best one trains
        wanted = by_hand(model, SHAPES, structure, most=1)
    assert numbers(model, plan, structure) == wanted


@pytest.mark.parametrize("normalize", [None, "mean", "norm", "max"])
@pytest.mark.parametrize("structure", ["entries", "rows", "blocks"])
@pytest.mark.parametrize("bounds", [(0.1, 0.4), (0.0, 0.3), (0.2, 1.0)])
def test_floors_and_caps_of_a_global_budget(structure, bounds, normalize):
    model = Three()
    most = 60 if structure == "entries" else 14
    plan = choose(
        model, most, structure, scope="global", floor=bounds[0], cap=bounds[1], normalize=normalize
    )
    wanted = by_hand(model, SHAPES, structure, most, bounds=bounds, scale=normalize)
    assert numbers(model, plan, structure) == wanted


def test_bounds_may_be_numbers_and_a_floor_above_the_budget_is_named():
    model = Three()
    plan = choose(model, 9, scope="global", floor=2, cap=4)
    assert sorted(map(len, plan.values())) == [2, 3, 4]
    with pytest.raises(ValueError, match="floor: 4 asks for 12 units in all, and the budget is 9"):
        choose(model, 9, scope="global", floor=4)
    with pytest.warns(UserWarning, match="cap: 4 .* is 12 units in all, and the budget is 90, so"):
        plan = choose(model, 90, scope="global", cap=4)
    assert [len(s) for s in plan.values()] == [4, 4, 4]
    with pytest.warns(UserWarning, match="cap: 0.2 of each weight"):
        choose(model, 0.9, "rows", scope="global", cap=0.2)


def test_one_weight_of_a_global_budget_takes_it_all_without_bounds():
    model = Three(scale=(1.0, 1000.0, 1.0))
    assert list(choose(model, 0.1, scope="global")) == ["b"]
    assert len(choose(model, 0.1, scope="global", normalize="mean")) == 3


@pytest.mark.parametrize("structure", STRUCTURES)
def test_groups_have_a_budget_each(structure):
    model = Three()
    groups = {"first": ["a", "b"], "second": "c"}
    plan = choose(model, 0.5, structure, scope="group", groups=groups)
    wanted = {}
    entries = round(0.5 * (6 * 10 + 9 * 4))
    wanted |= by_hand(model, ["a", "b"], structure, entries=entries)
    alone = max(1, round(0.5 * len(units(model, "c", structure))))  # as in scope="tensor"
    wanted |= by_hand(model, ["c"], structure, most=alone)
    assert numbers(model, plan, structure) == wanted


def test_groups_are_by_default_the_same_weight_of_all_layers():
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(3))})
    model.layers[1].weight.data *= 100
    plan = sft.select(model, density=0.1, structure="rows", score="magnitude", scope="group")
    assert list(plan) == ["layers.1.weight"] and len(plan["layers.1.weight"]) == 2
    for groups, message in (
        ({"a": "*.0.*"}, "'layers.1.weight' is in no group"),
        ({"a": "*", "b": "*.0.*"}, r"'layers.0.weight' is in \['a', 'b'\]"),
    ):
        with pytest.raises(ValueError, match=f"groups: {message}"):
            sft.select(model, density=0.1, score="random", scope="group", groups=groups)


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.93, 1.0])
def test_a_share_of_the_sum(structure, share, scope):
    model = Three(torch.float64)
    plan = choose(model, sft.Share(share), structure, scope=scope)
    pools = [SHAPES] if scope == "global" else [[name] for name in SHAPES]
    wanted = {}
    for pool in pools:
        wanted |= by_hand(model, pool, structure, share=share)
    assert numbers(model, plan, structure) == wanted


def test_a_share_of_scores_with_signs_is_refused():
    for scope in ("tensor", "global"):
        for structure in ("entries", "rows"):
            with pytest.raises(ValueError, match="budget: a Share needs scores.*'a' has -"):
                choose(Three(), sft.Share(0.5), structure, "magnitude_bottom", scope=scope)


@pytest.mark.parametrize("structure", ["entries", "rows", "columns"])
def test_like_lora(structure):
    model = Three()
    plan = choose(model, sft.LikeLora(1), structure)
    for name, (rows, columns) in SHAPES.items():
        entries = rows + columns
        line = {"entries": 1, "rows": columns, "columns": rows}[structure]
        assert len(plan[name]) == max(1, round(entries / line))
        assert (
            numbers(model, plan, structure)[name]
            == (by_hand(model, [name], structure, most=len(plan[name]))[name])
        )
    plan = choose(model, sft.LikeLora(1), "entries", scope="global")
    assert sum(map(len, plan.values())) == sum(map(sum, SHAPES.values()))


@pytest.mark.parametrize("count", [1, 3, 4, 99])
def test_so_many_of_each_row(count):
    model = Three()
    plan = sft.select(model, budget=sft.PerRow(count), score="magnitude", targets=list(SHAPES))
    for name, selection in plan.items():
        score = model.get_parameter(name).detach().abs()
        best = score.argsort(descending=True)[:, :count]
        mask = torch.zeros_like(score, dtype=torch.bool).scatter_(1, best, True)
        assert torch.equal(selection.mask(score.shape), mask)


@pytest.mark.parametrize("count, of", [(2, 4), (1, 3), (4, 4), (3, 100)])
def test_so_many_of_so_many_neighbours(count, of):
    model = Three()
    plan = sft.select(model, budget=sft.NM(count, of), score="magnitude", targets=list(SHAPES))
    for name, selection in plan.items():
        score = model.get_parameter(name).detach().abs()
        mask = torch.zeros_like(score, dtype=torch.bool)
        for row, line in enumerate(score):
            for begin in range(0, len(line), of):
                best = line[begin : begin + of].argsort(descending=True)[:count]
                mask[row, begin + best] = True
        assert torch.equal(selection.mask(score.shape), mask)


@pytest.mark.parametrize("structure", ["entries", "rows", "columns", "blocks"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_a_seed_decides_between_equal_scores(scope, structure):
    model = Three()
    for parameter in model.parameters():
        parameter.data.fill_(1.0)

    def drawn(seed):
        plan = choose(model, 0.4, structure, scope=scope, seed=seed)
        return numbers(model, plan, structure)

    assert drawn(3) == drawn(3) and len({str(drawn(seed)) for seed in range(5)}) > 1


def test_equal_scores_at_a_border_between_weights_are_shared_out():
    """Many zeros and a few that are not: the rest of the budget does not go to one weight."""
    model = Three()
    for parameter in model.parameters():
        parameter.data.mul_(parameter.abs() > 2)
    some = sum(int((p != 0).sum()) for p in model.parameters())
    plan = choose(model, some + 30, scope="global")
    assert sum(map(len, plan.values())) == some + 30
    for name, selection in plan.items():
        weight = model.get_parameter(name)
        zeros = int((selection.gather(weight) == 0).sum())
        assert len(selection) - zeros == int((weight != 0).sum())
        room = int((weight == 0).sum())
        assert abs(zeros - 30 * room / (161 - some)) <= 2


def test_weights_without_entries_are_left_out():
    model = Three()
    model.c = nn.Parameter(torch.empty(0, 5))
    plan = choose(model, 0.5)
    assert list(plan) == ["a", "b"] and plan.left["c"] == "it has no entries"
    with pytest.raises(ValueError, match="targets: 'c' has no entries"):
        sft.select(model, density=0.5, score="random", targets="c")


def test_whole_tensors():
    model = Three()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = choose(model, 2, "tensors")  # global by itself
    assert dict(plan) == {"a": "all", "b": "all"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(choose(model, 0.1, "tensors", scope="layer")) == 3  # one of each, as of rows
    sft.convert(model, plan)
    assert [p.requires_grad for p in model.parameters()] == [True, True, False]


@pytest.mark.parametrize("scale", ["1", "1e30", "1e-44"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_of_any_size_and_sign(scale, dtype):
    """The border is looked for in the bits: zeros, subnormal numbers, negative ones."""
    generator = torch.Generator().manual_seed(0)
    given = {}
    for name, shape in SHAPES.items():
        numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
        given[name] = (numbers * float(scale)).to(dtype)
        given[name][0, :2] = torch.tensor([0.0, -0.0])
    every = torch.cat([s.flatten() for s in given.values()]).sort(descending=True).values
    for most in (1, 17, 80, 81, 82, 120, 161):
        plan = choose(Three(), most, score=given, scope="global")
        chosen = torch.cat([plan[n].gather(given[n]) for n in plan]).sort(descending=True).values
        assert torch.equal(chosen, every[:most])


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"budget": 0.1, "density": 0.1}, ValueError, "density: 0.1 and budget=0.1 were given"),
        ({}, ValueError, "density: .*got None"),
        ({"budget": sft.PerRow}, TypeError, "budget: got the class PerRow; make one of it"),
        ({"budget": 0}, ValueError, "budget: expected a positive number of units, got 0"),
        ({"budget": 1.5}, ValueError, r"budget: expected a share in \(0, 1\], got 1.5"),
        ({"budget": "much"}, TypeError, "budget: .*sft.PerRow.*got 'much'"),
        ({"density": 0.1, "floor": -1}, ValueError, "floor: .*got -1"),
        ({"density": 0.1, "cap": 1.5}, ValueError, "cap: .*got 1.5"),
        ({"density": 0.1, "normalize": "sum"}, ValueError, "normalize: .*got 'sum'"),
        ({"density": 0.1, "combine": "mean"}, ValueError, "combine: .*got 'mean'"),
        ({"density": 0.1, "accumulate": "disk"}, ValueError, "accumulate: .*got 'disk'"),
        ({"density": 0.1, "passes": 0}, ValueError, "passes: .*got 0"),
        ({"density": 0.1, "max_batches": 0}, ValueError, "max_batches: .*got 0"),
        (
            {"budget": sft.PerRow(2), "structure": "rows"},
            ValueError,
            r"structure: PerRow\(count=2\) chooses single entries, got 'rows'",
        ),
    ],
)
def test_what_is_no_budget_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        sft.select(Three(), score="magnitude", targets=list(SHAPES), **settings)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sft.PerRow(0), "count: .*got 0"),
        (lambda: sft.NM(3, 2), "NM: .*got 3:2"),
        (lambda: sft.LikeLora(0), "rank: .*got 0"),
        (lambda: sft.Share(0), "share: .*got 0"),
    ],
)
def test_budgets_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()
