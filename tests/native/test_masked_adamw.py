"""masked_adamw_ of the native core against the formula in fp64, allowed twice plain PyTorch's own
error.
"""

import itertools

import core
import oracle
import pytest
import torch
from oracle import DTYPES, KINDS, name_of, same_bits

from sparse_ft.ops._eight_bit import quantize

HYPER = dict(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
STATE = ("value", "grad", "exp_avg", "exp_avg_sq")


def tensor(shape, dtype, step=3.0):
    made = {name: torch.randn(shape, dtype=torch.float64) for name in STATE}
    made["exp_avg_sq"] = made["exp_avg_sq"].square() + 0.1
    return {name: t.to(dtype) for name, t in made.items()} | {"step": torch.tensor(step)} | HYPER


def linked(kind, shape, dtype, weight_dtype, which="some", **keywords):
    layout = oracle.layout(kind, shape, which, **keywords)
    weight = torch.randn(shape, dtype=torch.float64).to(weight_dtype)
    return tensor(oracle.values_shape(*layout, shape), dtype) | {"weight": weight, "layout": layout}


def step_in(wide, t, *, maximize=False, inv_scale=1.0):
    """The update in `wide`, from the numbers that t holds."""
    p, g, m, v = (t[name].to(wide) for name in STATE)
    step, beta1, beta2 = t["step"].item() + 1, t["beta1"], t["beta2"]
    g = g * inv_scale * (-1 if maximize else 1)
    p = p * (1 - t["lr"] * t["weight_decay"])
    share = 1 - beta1  # torch.lerp's formula, from the nearer end
    m = m + (g - m) * share if share < 0.5 else g - (g - m) * (1 - share)
    v = v * beta2 + g * g * (1 - beta2)
    p = p - (t["lr"] / (1 - beta1**step)) * m / (v.sqrt() / (1 - beta2**step) ** 0.5 + t["eps"])
    return {"value": p, "exp_avg": m, "exp_avg_sq": v}


def copy(t):
    return {name: x.clone() if torch.is_tensor(x) else x for name, x in t.items()}


def check_step(t, **keywords):
    before, dtype = copy(t), t["value"].dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert not core.adamw_([t], **keywords)
    want, plain = step_in(torch.float64, before, **keywords), step_in(wide, before, **keywords)
    for name in want:
        slack = 4 * torch.finfo(wide).eps if dtype == wide else 0
        oracle.assert_as_good_as_plain(t[name], want[name], plain[name].to(dtype), slack)
    assert t["step"] == before["step"] + 1
    if "weight" in t:
        shape = t["weight"].shape
        shown = oracle.spread(t["value"], t["layout"], shape).to(t["weight"].dtype)
        assert same_bits(
            t["weight"], torch.where(oracle.mask(t["layout"], shape), shown, before["weight"])
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7, 10), (1, 5), (6, 1), (67, 131)], ids=str)
def test_every_dtype_pair(variant, kind, shape):
    pairs, index_dtypes = (
        itertools.product(DTYPES, DTYPES),
        itertools.cycle((torch.int32, torch.int64)),
    )
    for (dtype, weight_dtype), index_dtype in zip(pairs, index_dtypes):
        check_step(linked(kind, shape, dtype, weight_dtype, index_dtype=index_dtype))


# A long row of values is updated and written through at once, up to its last whole line of 16: rows
# shorter than that deserves, one piece of 512, rows that end with a piece or a line, and others.
LENGTHS = 100, 128, 500, 512, 520, 1030, 2048


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=name_of)
def test_rows_of_every_length_reach_the_weight(variant, dtype):
    for length in LENGTHS:
        check_step(linked("rows", (24, length), dtype, dtype))
        check_step(linked("rows", (9, length), dtype, dtype) | {"beta1": 0.3})


def test_wide_blocks_reach_the_weight_but_for_what_hangs_over(variant):
    for width in (128, 192, 300):
        check_step(linked("blocks", (9, 1000), torch.float32, torch.float32, block=(2, width)))


def test_more_rows_than_one_call_updates_reach_the_weight(variant):
    """A call has 64 runs at most, a chunk 16384 entries."""
    for length in (128, 131):
        check_step(linked("rows", (400, length), torch.float32, torch.float32))
    check_step(linked("blocks", (160, 1000), torch.float32, torch.float32, block=(2, 128)))


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_plain_tensors_maximize_and_scale(variant, dtype):
    check_step(tensor((1003,), dtype))
    check_step(tensor((1003,), dtype, step=0.0), maximize=True, inv_scale=1 / 1024)
    check_step(tensor((0,), dtype))


@pytest.mark.parametrize("beta1", [0.5, 0.3, 0.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_small_beta1(variant, dtype, beta1):
    t = tensor((1003,), dtype) | {"beta1": beta1}
    t["exp_avg"].mul_(1000)
    check_step(t)
    if beta1 == 0:
        assert torch.equal(t["exp_avg"], t["grad"])


def test_lr_at_an_address_counts_instead_of_the_number(variant):
    t = tensor((1003,), torch.float32) | {"lr": 1e3, "lr_at": torch.tensor(0.25)}
    want = copy(t) | {"lr": 0.25}
    del want["lr_at"]
    core.adamw_([t])
    core.adamw_([want])
    assert all(same_bits(t[name], want[name]) for name in STATE)


@pytest.mark.parametrize("kind", KINDS)
def test_all_and_none_selected(variant, kind):
    check_step(linked(kind, (13, 9), torch.float32, torch.bfloat16, "all"))
    check_step(linked(kind, (13, 9), torch.float32, torch.bfloat16, "empty"))


def model():
    """Tensors of all sorts at once, two of them empty."""
    torch.manual_seed(5)
    fp32, fp64, bf16, fp16 = DTYPES
    cases = [
        ("rows", fp32, bf16, "some"),
        ("columns", bf16, bf16, "some"),
        ("blocks", fp32, fp16, "all"),
        ("entries", fp64, fp32, "some"),
        ("entries", fp32, fp32, "empty"),
    ]
    made = [
        linked(kind, (130, 260), dtype, weight, which, block=(16, 20))
        for kind, dtype, weight, which in cases
    ]
    made += [tensor(shape, torch.float32) for shape in ((0,), (5,), (300, 77))] + [
        tensor((9001,), torch.float16)
    ]
    made += [tensor((400_000,), torch.float32)]  # work enough for a team of seven
    made += [tensor((20_011,), dtype) | {"seed": 7} for dtype in (torch.bfloat16, torch.float16)]
    corrected = tensor((20_011,), torch.float32)
    corrected |= {"value": corrected["value"].bfloat16(), "grad": corrected["grad"].bfloat16()}
    made += [corrected | {"correction": torch.arange(20_011).to(torch.int16)}]
    made += [eight_bit(tensor((20_011,), torch.float32)), eight_bit(copy(made[-2]))]
    for i, t in enumerate(made):
        t["lr"], t["beta1"] = 0.01 * (i + 1), (0.9, 0.9, 0.3)[i % 3]
    return made


def eight_bit(t):
    t["exp_avg"], t["exp_avg_absmax"] = quantize(t["exp_avg"].float(), signed=True)
    t["exp_avg_sq"], t["exp_avg_sq_absmax"] = quantize(t["exp_avg_sq"].float(), signed=False)
    return t


def run(threads, **keywords):
    tensors = model()
    found = core.adamw_(tensors, threads=threads, **keywords)
    names = *STATE, "step", "weight", "correction", "exp_avg_absmax", "exp_avg_sq_absmax"
    kept = [t[name] for t in tensors for name in names if name in t]
    return found, [t if t.is_floating_point() else t.float() for t in kept]


def test_same_bits_for_every_thread_count_and_variant():
    _, want = run(1)
    chosen = core.C.build_info()["cpu_variant"]
    for name, threads in itertools.product(core.variants(), (1, 2, 3, 7)):
        core.C.set_cpu_variant(name)
        found, got = run(threads, skip_nonfinite=True)
        assert not found and all(same_bits(a, b) for a, b in zip(got, want)), (name, threads)
    core.C.set_cpu_variant(chosen)


@pytest.mark.parametrize("bad", ("inf", "-inf", "nan"))
@pytest.mark.parametrize("which", (0, 1, 3, 7, 8))
def test_nonfinite_gradient_changes_nothing(variant, which, bad):
    tensors = model()
    tensors[which]["grad"].view(-1)[-1] = float(bad)
    before = [copy(t) for t in tensors]
    assert core.adamw_(tensors, skip_nonfinite=True)
    assert all(
        torch.equal(t[name], b[name])
        for t, b in zip(tensors, before)
        for name in STATE
        if name != "grad"
    )
    assert all(
        same_bits(t[name], b[name])
        for t, b in zip(tensors, before)
        for name in ("step", "weight")
        if name in t
    )


def test_nan_survives_when_not_asked_to_skip(variant):
    t = linked("entries", (40, 50), torch.float32, torch.bfloat16)
    t["grad"][7] = float("nan")
    core.adamw_([t])
    row, column = divmod(t["layout"][1][7].item(), 50)
    assert (
        t["value"][7].isnan() and t["weight"][row, column].isnan() and t["value"].isnan().sum() == 1
    )


def test_a_count_that_is_not_the_layouts_is_refused():
    t = linked("rows", (8, 5), torch.float32, torch.float32)
    for name in STATE:
        t[name] = t[name].view(-1)[:-1].clone()
    with pytest.raises(ValueError, match=r"values: expected \d+ elements, got shape"):
        core.adamw_([t])


def stored(corrected=False, eight_bit=False):
    dtype = torch.bfloat16 if corrected else torch.float32
    moments = torch.uint8 if eight_bit else torch.float32
    t = dict(values=torch.ones(6, 4, dtype=dtype), step=torch.zeros(()))
    t |= {name: torch.zeros(6, 4, dtype=moments) for name in ("exp_avg", "exp_avg_sq")}
    if corrected:
        t["correction"] = torch.zeros(6, 4, dtype=torch.int16)
    if eight_bit:
        t |= {name: torch.zeros(1) for name in ("exp_avg_absmax", "exp_avg_sq_absmax")}
    index = torch.arange(6)
    return t | dict(weight=torch.ones(6, 4), layout=("rows", index, 1, 1))


STORED = {"plain": {}, "corrected": {"corrected": True}, "8 bits": {"eight_bit": True}}
WRONG = {
    "not a tensor": (lambda t: 1, TypeError, "expected a dense tensor, got int"),
    "elsewhere": (lambda t: t.to("meta"), ValueError, "expected a tensor .*, got one"),
    "complex": (lambda t: t.to(torch.complex64), TypeError, "expected .*, got another dtype"),
    "longer": (lambda t: torch.cat([t.view(-1)] * 2), ValueError, "expected .*, got "),
    "apart": (lambda t: torch.stack([t] * 2, -1).select(-1, 0), ValueError, "expected .*strides"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("form", STORED)
def test_a_wrong_tensor_is_refused_by_name(form, wrong):
    make, error, message = WRONG[wrong]
    given = stored(**STORED[form])
    core.C.AdamWTensor(**given)
    for name in given.keys() - {"layout"}:
        if wrong == "apart" and given[name].numel() == 1:
            continue
        told = name if wrong != "longer" else "|".join(given)
        changed = given | {name: make(given[name])}
        if wrong == "elsewhere" and name == "values":
            told = "values|exp_avg"
        with pytest.raises(error, match=f"^({told}): {message}"):
            core.C.AdamWTensor(**changed)


REFUSED = {
    "a seed for 32 bits": (dict(seed=1), "seed: expected -1 with values of more than 16 bits"),
    "a large seed": (dict(seed=1 << 48), "seed: expected at most"),
    "a correction of 32 bits": (
        dict(correction=torch.zeros(6, 4, dtype=torch.int16)),
        "correction: expected none beside these values",
    ),
    "a weight without layout": (dict(layout=None), "layout: expected one with a weight"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        core.C.AdamWTensor(**stored() | change)


def test_one_absmax_of_two_is_refused():
    given = stored(eight_bit=True)
    for name in ("exp_avg_absmax", "exp_avg_sq_absmax"):
        with pytest.raises((TypeError, ValueError), match="^exp_avg"):
            core.C.AdamWTensor(**{key: t for key, t in given.items() if key != name})


def test_a_step_needs_a_gradient_and_settings_for_each_tensor():
    known = core.C.AdamWTensor(**stored())
    grad, settings = torch.zeros(6, 4), core.C.AdamWSettings(1e-3, 0.9, 0.99, 1e-8, 0.0, 0)
    for grads, each, told in (
        ([], [settings], "grads: expected at least 1, got 0"),
        ([grad.data_ptr()], [settings] * 2, "settings: expected at most 1, got 2"),
        ([grad.data_ptr()], [None], "tensors: expected no None"),
    ):
        with pytest.raises(ValueError, match=told):
            core.C.masked_adamw_([known], grads, each, False, 1.0, False, 1)
