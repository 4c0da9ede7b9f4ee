"""SelectiveAdamW on state in fewer bits.

Trained as ever, saved and resumed bit for bit, refused where they do not apply.
"""

import copy
import io
import pickle

import pytest
import torch
from helpers.small_net import (
    PLAN,
    Net,
    assert_same_bits,
    assert_weights_show_values,
    everything,
    loss_of,
    train,
    trained,
)

import sparse_ft as sft
from sparse_ft.ops._rounding import join
from sparse_ft.optim import batches, storage

pytestmark = pytest.mark.usefixtures("made_on_device")

BF16 = torch.bfloat16
ROUNDED = {"by chance": dict(stochastic_rounding=True, seed=7), "corrected": dict(correction=True)}
EIGHT_BIT = {
    f"8 bits {name}": dict(settings, optim_bits=8)
    for name, settings in {"plain": {}, **ROUNDED}.items()
}
STORED = {**ROUNDED, **EIGHT_BIT}


@pytest.fixture(autouse=True)
def no_tensor_is_too_small(monkeypatch):
    monkeypatch.setattr(storage, "EIGHT_BIT_LEAST", 1)


@pytest.fixture(params=STORED)
def stored(request):
    return STORED[request.param]


def net(values_dtype=BF16, dtype=BF16):
    torch.manual_seed(0)
    model = Net().to(dtype)
    sft.convert(model, PLAN, values_dtype=values_dtype)
    return model


def make(stored, model=None, **settings):
    model = model or net()
    return model, sft.SelectiveAdamW(model.named_parameters(), **{"lr": 1e-2, **settings, **stored})


def resumed(model, optimizer, stored, through):
    other, fresh = make(stored, lr=0.5, **({"seed": 8} if "seed" in stored else {}))
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(through(optimizer.state_dict()))
    return other, fresh


def saved_and_loaded(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer)


def test_it_trains_and_the_weights_show_the_values(stored):
    model, optimizer = make(stored)
    before = sum(loss_of(model, seed).item() for seed in range(8))
    train(model, optimizer, 30)
    assert sum(loss_of(model, seed).item() for seed in range(8)) < before / 2
    assert_weights_show_values(model)


@pytest.mark.parametrize("through", [copy.deepcopy, saved_and_loaded], ids=["memory", "torch.save"])
def test_resuming_gives_the_bits_of_not_stopping(stored, through):
    model, optimizer = make(stored)
    train(model, optimizer, 4)
    other, fresh = resumed(
        model, optimizer, {**stored, **({"seed": 9} if "seed" in stored else {})}, through
    )
    assert_same_bits(everything(other, fresh), everything(model, optimizer))
    train(model, optimizer, 3, start=4)
    train(other, fresh, 3, start=4)
    assert_same_bits(everything(other, fresh), everything(model, optimizer))


@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["deepcopy", "pickle"],
)
def test_copies_go_on_alike(stored, twin):
    model, optimizer = make(stored)
    train(model, optimizer, 2)
    other, fresh = twin((model, optimizer))
    train(model, optimizer, 2, start=2)
    train(other, fresh, 2, start=2)
    assert_same_bits(everything(other, fresh), everything(model, optimizer))


def test_in_backward_gives_the_same_bits(stored):
    ends = []
    for in_backward in (False, True):
        model, optimizer = make({**stored, "in_backward": in_backward})
        train(model, optimizer, 4)
        ends.append(everything(model, optimizer))
    assert_same_bits(*ends)


def test_the_op_and_the_prepared_rows_give_the_same_bits(stored, monkeypatch):
    ends = []
    for prepared in (True, False):
        model, optimizer = make(stored)
        if not prepared:
            monkeypatch.setattr(batches, "native_call_of", lambda *_: None)
        train(model, optimizer, 3)
        ends.append(everything(model, optimizer))
    assert_same_bits(*ends)


def test_groups_scaler_and_skipped_steps(stored, device):
    model = net()
    first = [p for p in model.first.parameters() if p.requires_grad]
    others = [p for p in model.parameters() if p.requires_grad and all(p is not q for q in first)]
    optimizer = sft.SelectiveAdamW(
        [{"params": first, "lr": 1e-3}, {"params": others, "maximize": True}],
        skip_nonfinite=True,
        **stored,
    )
    train(model, optimizer, 2)
    before = everything(model, optimizer)
    loss_of(model, 0).backward()
    first[0].grad.view(-1)[0] = float("inf")
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert_same_bits(everything(model, optimizer), before)
    scaler, ends = torch.amp.GradScaler(device.type, init_scale=2.0**4), []
    for scaled in (False, True):
        model, optimizer = make(stored)
        for seed in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, seed)
            (scaler.scale(loss) if scaled else loss).backward()
            scaler.step(optimizer) if scaled else optimizer.step()
            if scaled:
                scaler.update()
        ends.append(everything(model, optimizer))
    assert_same_bits(*ends)  # a power of two


def test_plain_torch_state_is_cast_as_ever():
    """Without the options a checkpoint of another dtype ends in the parameter's, as
    torch has it.
    """
    model, optimizer = make({}, net(values_dtype=torch.float32))
    train(model, optimizer, 1)
    other, fresh = make({})
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.state[other.first.values]["exp_avg"].dtype == BF16


# stochastic_rounding


def test_the_seed_decides_and_tensors_differ():
    ends = []
    for seed in (0, 0, 1):
        model, optimizer = make({"stochastic_rounding": True, "seed": seed})
        train(model, optimizer, 3)
        ends.append(trained(model))
    assert_same_bits(ends[0], ends[1])
    assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    twins = [torch.nn.Parameter(torch.full((512,), 1.0, dtype=BF16)) for _ in range(2)]
    optimizer = sft.SelectiveAdamW(twins, lr=1e-3, stochastic_rounding=True)
    for p in twins:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not torch.equal(*twins)


def test_rounding_by_chance_ends_near_fp32_where_rounding_to_the_nearest_stays():
    ends = {}
    for name, dtype, settings in (
        ("fp32", torch.float32, {}),
        ("nearest", BF16, {}),
        ("chance", BF16, STORED["by chance"]),
    ):
        p = torch.nn.Parameter(torch.ones(4096, dtype=dtype))
        optimizer = sft.SelectiveAdamW([p], lr=1e-4, weight_decay=0.0, **settings)
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)
        for _ in range(100):
            p.grad = (1 + 0.1 * torch.randn(4096, generator=generator)).to(BF16).to(dtype)
            optimizer.step()
        ends[name] = p.detach().double().mean().item()
    assert ends["nearest"] == 1 and abs(ends["chance"] - ends["fp32"]) < 0.02 * (1 - ends["fp32"])


# correction


def test_corrected_values_train_as_fp32_masters_do():
    """Given the same gradients, bit for bit.

    The master, the moments, and the weight that the model shows.
    """
    corrected, one = make(STORED["corrected"])
    master, two = make({}, net(values_dtype=torch.float32))
    for seed in range(6):
        one.zero_grad()
        loss_of(corrected, seed).backward()
        for p, q in zip(corrected.parameters(), master.parameters()):
            if p.requires_grad:
                q.grad = p.grad.to(q.dtype)
        one.step(), two.step()
    compared = 0
    for (name, p), q in zip(corrected.named_parameters(), master.parameters()):
        if not name.endswith("values"):
            continue
        state, want = one.state[p], two.state[q]
        assert torch.equal(join(p.detach(), state["correction"]), q.detach()), name
        assert all(torch.equal(state[moment], want[moment]) for moment in ("exp_avg", "exp_avg_sq"))
        away = state["correction"] == -(1 << 15)
        assert torch.equal(p.detach()[~away], q.detach().to(BF16)[~away])
        compared += p.numel()
    assert compared > 20
    assert {s["correction"].dtype for s in one.state.values()} == {torch.int16}


def test_a_run_without_a_correction_is_gone_on_with_one():
    model, optimizer = make({})
    train(model, optimizer, 2)
    other, fresh = make(STORED["corrected"])
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    train(other, fresh, 2)
    state = fresh.state[other.first.values]
    assert (
        state["correction"].any() and state["exp_avg"].dtype == torch.float32 and state["step"] == 4
    )


def test_a_checkpoint_that_has_no_place_is_refused_and_nothing_is_loaded():
    model, optimizer = make(STORED["corrected"])
    train(model, optimizer, 2)
    other, fresh = make({})
    train(other, fresh, 1)
    before = everything(other, fresh)
    with pytest.raises(
        ValueError,
        match=(
            "state_dict: embed.values: it holds 'correction', which"
            " SelectiveAdamW.*correction=False"
        ),
    ):
        fresh.load_state_dict(optimizer.state_dict())
    assert_same_bits(everything(other, fresh), before)
    train(other, fresh, 1)


# What is refused.


@pytest.mark.parametrize(
    "settings, dtype, message",
    [
        (
            {"stochastic_rounding": True},
            torch.float32,
            "stochastic_rounding: embed.values is torch.float32.*values_dtype",
        ),
        (
            {"correction": True},
            torch.float32,
            "correction: embed.values is torch.float32.*values_dtype",
        ),
        ({"correction": True}, torch.float16, "correction: .* is torch.float16"),
        (
            {"correction": True, "stochastic_rounding": True},
            BF16,
            "correction: .*stochastic_rounding=True",
        ),
        ({"stochastic_rounding": True, "seed": 0.5}, BF16, "seed: expected an integer, got 0.5"),
    ],
)
def test_what_does_not_apply_is_refused_by_name(settings, dtype, message):
    model = net(dtype, torch.float16 if dtype == torch.float16 else BF16)
    with pytest.raises(ValueError, match=message):
        sft.SelectiveAdamW(model.named_parameters(), **settings)


def test_a_group_that_is_refused_is_not_added():
    model, optimizer = make({"stochastic_rounding": True})
    late = net(torch.float32)
    with pytest.raises(ValueError, match="stochastic_rounding: late is torch.float32"):
        optimizer.add_param_group({"params": [("late", late.first.values)]})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, 1)


@pytest.mark.parametrize("stored", ROUNDED.values(), ids=ROUNDED)
def test_parameters_in_full_precision_are_left_as_they_are(stored):
    model = net()
    late = torch.nn.Parameter(torch.ones(3))
    optimizer = sft.SelectiveAdamW([*model.first.parameters(), late], **stored)
    for p in model.first.parameters():
        p.grad = torch.ones_like(p)
    late.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[late].keys() == {"step", "exp_avg", "exp_avg_sq"} and (late != 1).all()
