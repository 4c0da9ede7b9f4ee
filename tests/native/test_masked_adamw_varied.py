"""Entries with ages, factors and origins of their own in the native core, variant by variant."""

import itertools

import core
import pytest
import torch
from oracle import same_bits

from sparse_ft.ops._registry import OPS

HYPER = dict(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
STATE = "value", "exp_avg", "exp_avg_sq", "step"
# Entries of one factor. A line is 16 of them (8 of fp64) and a piece 512: runs of 64 and 2048 end
# with lines and pieces, in lines of 100 and 529 one run meets the next, and 30 are few.
RUNS = 30, 64, 100, 529, 2048
ORIGINS = None, torch.float32, torch.bfloat16, torch.float64
# Generations: none, a table of one vector, of two and of more.
GENERATIONS = 0, 4, 12, 40


def rows_of(run, dtype, generations, origin, beta1, entries=1200):
    """Two pieces and some of a third, each row with a factor."""
    shape = entries // run + 1, run
    made = {"value": torch.randn(shape), "grad": torch.randn(shape)}
    made |= {"exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape) + 0.1}
    made = {name: tensor.to(dtype) for name, tensor in made.items()}
    made |= HYPER | {"step": torch.tensor(99.0), "beta1": beta1, "factor": torch.rand(shape[0])}
    if generations:
        made["generation"] = torch.randint(generations, shape, dtype=torch.uint8)
        made["births"] = torch.arange(float(generations))
    if origin:
        made["origin"] = torch.randn(shape).to(origin)
    return made


def by_reference(t):
    """The state after a step of the reference."""
    state = {name: t[name].clone() for name in STATE}
    lists = state["value"], t["grad"], state["exp_avg"], state["exp_avg_sq"], state["step"]
    names = {"generation": "generations", "births": "births", "origin": "origins"}
    keywords = {plural: [t[name]] for name, plural in names.items() if name in t}
    keywords |= {name: [t[name]] for name in HYPER}
    step_ = OPS["masked_adamw_"].backends["reference"]
    lists = *([tensor] for tensor in lists), [], [], [], []
    step_(*lists, factors=[t["factor"]], **keywords)
    return state


@pytest.mark.parametrize("generations", GENERATIONS)
def test_runs_of_one_factor_have_the_bits_of_the_reference(variant, generations):
    torch.manual_seed(generations)
    for run, origin, beta1 in itertools.product(RUNS, ORIGINS, (0.9, 0.3)):
        t = rows_of(run, torch.float32, generations, origin, beta1)
        want = by_reference(t)
        assert not core.adamw_([t])
        assert all(same_bits(t[name], want[name]) for name in STATE), (run, origin, beta1)


@pytest.mark.parametrize("generations", GENERATIONS)
def test_runs_of_one_factor_in_double_precision(variant, generations):
    """Whose powers are torch's own."""
    torch.manual_seed(generations)
    for run, origin in itertools.product(RUNS, ORIGINS):
        t = rows_of(run, torch.float64, generations, origin, 0.9)
        want = by_reference(t)
        assert not core.adamw_([t])
        for name in STATE:
            torch.testing.assert_close(t[name], want[name], rtol=1e-14, atol=1e-15)


def with_state_of_its_own(t):
    return t | {name: t[name].clone() for name in STATE}


def test_tensors_of_one_step_share_no_ages_but_their_own(variant):
    """Whatever ages depend on differs from one to the next, or nothing does."""
    for dtype in (torch.float32, torch.float64):
        first = rows_of(64, dtype, 4, None, 0.9)
        changes = [{"births": first["births"] + 1.0}, {"births": torch.arange(5.0)}]
        changes += [{"beta1": 0.8}, {"beta2": 0.9}, {"lr": 1e-3}, {"step": torch.tensor(98.0)}]
        turns = [turn for change in changes for turn in ({}, change)] + [{}, {}]
        together = [with_state_of_its_own(first | change) for change in turns]
        # one without ages, and one of another dtype, between two that have them alike
        plain = rows_of(64, dtype, 0, None, 0.9)
        together[-1:-1] = [plain, rows_of(64, torch.bfloat16, 4, None, 0.9)]
        alone = [with_state_of_its_own(t) for t in together]
        core.adamw_(together)
        for one, other in zip(together, alone):
            core.adamw_([other])
            assert all(same_bits(one[name], other[name]) for name in STATE)


def test_one_factor_a_row_is_one_an_entry(variant):
    """Also in 16 bits, whose pieces are widened first."""
    for run, dtype in itertools.product(RUNS, (torch.float32, torch.float64, torch.bfloat16)):
        by_row = rows_of(run, dtype, 4, None, 0.9)
        state = {name: by_row[name].clone() for name in STATE}
        by_entry = by_row | state
        factor = by_row["factor"][:, None]
        by_entry["factor"] = factor.expand(by_row["value"].shape).contiguous()
        core.adamw_([by_row, by_entry])
        assert all(same_bits(by_row[name], by_entry[name]) for name in STATE), (run, dtype)


@pytest.mark.parametrize("entries", (1200, 20000), ids=("some", "more_than_one_call_updates"))
def test_what_varies_is_in_the_weight_as_well(variant, entries):
    """Rows that are written through as they are updated, up to their last whole line."""
    lengths, dtypes = (128, 131, 500, 512, 1030), (torch.float32, torch.float64)
    for length, dtype in itertools.product(lengths, dtypes):
        t = rows_of(length, dtype, 12, torch.float32, 0.9, entries)
        rows = t["value"].size(0)
        apart = {name: t[name].clone() for name in STATE}
        weight = torch.zeros(2 * rows, length, dtype=dtype)
        t |= {"weight": weight, "layout": ("rows", torch.arange(0, 2 * rows, 2), 1, 1)}
        core.adamw_([t])
        core.adamw_([{name: t[name] for name in t if name not in ("weight", "layout")} | apart])
        assert all(same_bits(t[name], apart[name]) for name in STATE), (length, dtype)
        assert same_bits(weight[::2], t["value"]) and not weight[1::2].any(), (length, dtype)
