"""masked_adamw_ on state in fewer bits.

The reference's bits on every backend, what is stored, what is refused.
"""

import itertools

import oracle
import pytest
import torch
from adamw_problem import SHAPE, Problem, assert_refused

from sparse_ft import ops
from sparse_ft.ops._registry import reference
from sparse_ft.ops._rounding import join

BF16, FP16 = torch.bfloat16, torch.float16
ROUNDED = [("by chance", BF16), ("by chance", FP16), ("corrected", BF16)]
EIGHT_BIT = [("8 bits", torch.float32), ("8 bits", BF16)] + [
    (f"8 bits {stored}", dtype) for stored, dtype in ROUNDED
]
STORED = ROUNDED + EIGHT_BIT


def problem(stored, dtype, **keywords):
    torch.manual_seed(5)
    return Problem(dtype=dtype, stored=stored, plain=((5,), (3, 4), (), (70_001,)), **keywords)


@pytest.mark.parametrize("weight_dtype", oracle.DTYPES, ids=oracle.name_of)
@pytest.mark.parametrize("stored, dtype", STORED)
def test_the_reference_and_the_op_give_the_same_bits(stored, dtype, weight_dtype, device):
    one, two = (problem(stored, dtype, weight_dtype=weight_dtype, device=device) for _ in range(2))
    for _ in range(4):
        one.step(reference("masked_adamw_"))
        two.step(ops.masked_adamw_)
    assert all(
        oracle.same_bits(a, b)
        for a, b in zip(one.state, two.state, strict=True)
        if a.is_floating_point()
    )
    assert all(torch.equal(a, b) for a, b in zip(one.state, two.state, strict=True))


@pytest.mark.parametrize("stored, dtype", STORED)
def test_the_weight_shows_the_values(adamw_, stored, dtype, device):
    made = problem(stored, dtype, weight_dtype=dtype, device=device)
    before = [w.clone() for w in made.weights]
    made.step(adamw_)
    for weight, value, layout, old in zip(made.weights, made.values, made.layouts, before):
        shown = oracle.spread(value.cpu(), layout, SHAPE)
        assert oracle.same_bits(weight, torch.where(oracle.mask(layout, SHAPE), shown, old.cpu()))


def test_value_and_correction_are_the_fp32_master(adamw_, device):
    """The same gradients give the bits that fp32 values get."""
    corrected, master = (
        problem("corrected", BF16, device=device),
        problem("plain", torch.float32, weight_dtype=BF16, device=device),
    )
    master.values = [v.float() for v in corrected.values]
    for _ in range(7):
        corrected.new_grads()
        master.grads = [g.float() for g in corrected.grads]
        corrected.step(adamw_)
        master.step(adamw_)
    for value, low, want in zip(corrected.values, corrected.corrections, master.values):
        assert oracle.same_bits(join(value, low), want)
        assert torch.equal(value[low != -(1 << 15)], want.to(BF16)[low != -(1 << 15)])
    for name in ("exp_avgs", "exp_avg_sqs"):
        assert all(
            oracle.same_bits(a, b) for a, b in zip(getattr(corrected, name), getattr(master, name))
        )
    assert any(low.any() for low in corrected.corrections)


def test_rounding_by_chance_follows_updates_that_rounding_to_the_nearest_loses(device):
    """256 steps of 2^-14 each, 1/128 of the unit in the last place of 1.5: two units in
    expectation.
    """
    ends = {}
    for stored in ("plain", "by chance"):
        made = Problem(
            kinds=(),
            plain=((4096,),),
            dtype=BF16,
            stored=stored,
            device=device,
            lr=2.0**-14,
            weight_decay=0.0,
        )
        made.values[0].fill_(1.5)
        made.grads[0].fill_(1.0)
        for step in range(256):
            (
                made.exp_avgs[0].fill_(1.0),
                made.exp_avg_sqs[0].fill_(1.0),
                made.steps[0].fill_(10_000 + step),
            )
            made.step(ops.masked_adamw_)  # each time an update of lr
        ends[stored] = made.values[0].double().mean().item()
    deviation = (256 / 128) ** 0.5 * 2.0**-7 / 4096**0.5
    assert ends["plain"] == 1.5
    assert abs(ends["by chance"] - (1.5 - 2.0**-6)) < 5 * deviation


@pytest.mark.parametrize("stored, dtype", STORED)
def test_threads_and_the_company_of_other_tensors_do_not_change_the_bits(stored, dtype):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made = problem(stored, dtype)
        made.step(ops.masked_adamw_)
        results.append(made.state)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
    alone = problem(stored, dtype)
    i = len(alone.values) - 1
    state = {
        name: [getattr(alone, name)[i]]
        for name in ("values", "grads", "exp_avgs", "exp_avg_sqs", "steps")
    }
    storage = {
        name: given[-2:] if name == "absmaxes" else given[-1:]
        for name, given in alone.storage.items()
    }
    ops.masked_adamw_(
        *state.values(), **{name: [each[i]] for name, each in alone.hyper.items()}, **storage
    )
    assert torch.equal(alone.values[i], made.values[i])


def test_permuted_memory_gets_the_words_of_its_own_order(device):
    made = []
    for adamw_ in (reference("masked_adamw_"), ops.masked_adamw_):
        torch.manual_seed(5)
        made.append(
            Problem(kinds=(), plain=((2, 3, 4, 5),), dtype=BF16, stored="by chance", device=device)
        )
        made[-1].to_channels_last()
        made[-1].step(adamw_)
    assert all(torch.equal(a, b) for a, b in zip(made[0].state, made[1].state))


def test_nonfinite_numbers_stay_in_their_entry(device):
    for stored, dtype in ROUNDED:
        made = Problem(
            kinds=("rows",), plain=(), dtype=dtype, weight_dtype=dtype, stored=stored, device=device
        )
        made.grads[0][1, 2], made.grads[0][1, 3] = float("nan"), float("inf")
        made.step(ops.masked_adamw_)
        assert made.values[0].isnan().sum() == 2 and made.weights[0].isnan().sum() == 2
        assert made.exp_avgs[0].isnan().sum() == 1 and made.exp_avgs[0].isinf().sum() == 1


@pytest.mark.parametrize("stored, dtype", STORED)
def test_skipped_steps_and_opcheck(stored, dtype, device):
    made = problem(stored, dtype, device=device)
    made.grads[1].view(-1)[3] = float("inf")
    before, found = [t.clone() for t in made.state], torch.zeros(1, device=device)
    made.step(ops.masked_adamw_, skip_nonfinite=True, found_inf=found)
    assert found.item() == 1 and all(torch.equal(a, b) for a, b in zip(made.state, before))
    made.new_grads()
    torch.library.opcheck(
        torch.ops.sparse_ft.masked_adamw_.default, made.arguments, {**made.hyper, **made.storage}
    )


def test_versions_of_corrections_move(device):
    made = problem("corrected", BF16, device=device)
    before = [t._version for t in made.corrections]
    made.step(ops.masked_adamw_)
    assert all(t._version > v for t, v in zip(made.corrections, before))


def test_some_tensors_may_be_stored_plainly(device):
    mixed = problem("by chance", BF16, device=device)
    mixed.seeds[1] = -1
    plain = problem("plain", BF16, device=device)
    mixed.step(ops.masked_adamw_)
    plain.step(ops.masked_adamw_)
    assert torch.equal(mixed.values[1], plain.values[1]) and not torch.equal(
        mixed.values[0], plain.values[0]
    )
    mixed = problem("corrected", BF16, device=device)
    mixed.corrections[1] = mixed.corrections[1].new_empty(0)
    for name in ("exp_avgs", "exp_avg_sqs"):
        getattr(mixed, name)[1] = getattr(mixed, name)[1].to(BF16)
    mixed.step(ops.masked_adamw_)
    assert torch.equal(mixed.values[1], plain.values[1])


def change(name, i, new):
    return lambda made: getattr(made, name).__setitem__(i, new(getattr(made, name)[i]))


@pytest.mark.parametrize(
    "stored, dtype, wrong, error, message",
    [
        (
            "by chance",
            torch.float32,
            None,
            TypeError,
            "seeds: only what is stored in 16 bits.*float32",
        ),
        (
            "by chance",
            BF16,
            change("seeds", 2, lambda _: 1 << 48),
            ValueError,
            "seeds: expected numbers in",
        ),
        (
            "by chance",
            BF16,
            lambda made: made.seeds.pop(),
            ValueError,
            "seeds: expected None or 8 items.*got 7",
        ),
        (
            "by chance",
            BF16,
            change("exp_avgs", 2, torch.Tensor.float),
            ValueError,
            "exp_avgs: expected torch.bfloat16.*float32",
        ),
        (
            "corrected",
            FP16,
            None,
            TypeError,
            "corrections: they go with values in bfloat16, got torch.float16",
        ),
        (
            "corrected",
            BF16,
            lambda made: made.corrections.pop(),
            ValueError,
            "corrections: expected None or 8 items.*got 7",
        ),
        (
            "corrected",
            BF16,
            change("corrections", 4, torch.Tensor.int),
            ValueError,
            "corrections: expected torch.int16 .*int32",
        ),
        (
            "corrected",
            BF16,
            change("exp_avg_sqs", 0, torch.Tensor.bfloat16),
            ValueError,
            "exp_avg_sqs: expected torch.float32",
        ),
        (
            "corrected",
            BF16,
            lambda made: setattr(made, "seeds", [1] * 8),
            ValueError,
            "seeds: with a correction nothing",
        ),
    ],
)
def test_errors_name_the_argument_and_change_nothing(adamw_, stored, dtype, wrong, error, message):
    made = problem(stored, dtype)
    if wrong is not None:
        wrong(made)
    assert_refused(made, adamw_, error, message)


def test_every_pair_of_stored_kinds_runs_in_one_call():
    for a, b in itertools.combinations(STORED, 2):
        one, two = problem(*a), problem(*b)
        filler = torch.empty(0, dtype=torch.int16)
        both = [x + y for x, y in zip(one.arguments[:5], two.arguments[:5])]
        hyper = {name: one.hyper[name] + two.hyper[name] for name in one.hyper}
        fillers = {"corrections": [filler] * len(one.values), "seeds": [-1] * len(one.values)}
        fillers["absmaxes"] = [torch.empty(0)] * 2 * len(one.values)
        storage = {
            name: (getattr(one, name) or rest) + (getattr(two, name) or rest)
            for name, rest in fillers.items()
        }
        ops.masked_adamw_(*both, **hyper, **storage)
        want = problem(*a), problem(*b)
        for each in want:
            each.weights, each.layouts = [], []
            each.step(reference("masked_adamw_"))
        assert all(
            torch.equal(x, y)
            for x, y in zip(one.values + two.values, want[0].values + want[1].values)
        )
