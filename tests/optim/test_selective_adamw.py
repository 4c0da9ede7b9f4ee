"""SelectiveAdamW as a torch.optim.Optimizer: groups, schedulers, resuming, and what it writes."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from helpers.small_net import (
    PLAN,
    Net,
    assert_same_bits,
    assert_weights_show_values,
    everything,
    loss_of,
    net,
    train,
    trained,
    weights,
)
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

# The update, against torch's.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.3},
        {"betas": (0.5, 0.9)},
        {"betas": (0.0, 0.0)},
        {"eps": 1e-3},
        {"maximize": True},
        {"lr": 0},
    ],
    ids=str,
)
def test_is_adamw(settings):
    """fp64: to rounding. fp32: no further from fp64 than twice torch's own."""
    settings = {"lr": 1e-2, "weight_decay": 0.01, **settings}
    ends = {}
    for dtype in (torch.float64, torch.float32):
        for make in (torch.optim.AdamW, sft.SelectiveAdamW):
            torch.manual_seed(0)
            model = Net().double().to(dtype)
            sft.convert(model, PLAN)
            train(model, make(model.parameters(), **settings), 20)
            ends[make, dtype] = sft.revert(model).state_dict()
    for name, exact in ends[torch.optim.AdamW, torch.float64].items():
        torch.testing.assert_close(
            ends[sft.SelectiveAdamW, torch.float64][name], exact, rtol=0, atol=1e-12
        )
    distance = {
        make: sum(
            (ends[make, torch.float32][n].double() - exact).square().sum()
            for n, exact in ends[torch.optim.AdamW, torch.float64].items()
        ).sqrt()
        for make in (torch.optim.AdamW, sft.SelectiveAdamW)
    }
    assert distance[sft.SelectiveAdamW] <= 2 * distance[torch.optim.AdamW]


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),  # moves betas too
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 0.1, 1, 4),
                torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
            ],
            [4],
        ),
    ],
    ids=["cosine", "one cycle", "warm-up then decay"],
)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers_and_tensor_lr(schedule, tensor_lr, device):
    ends = []
    on_host = device.type == "cpu" or not tensor_lr  # elsewhere it is read there, as fp32
    for make in (torch.optim.AdamW, sft.SelectiveAdamW):
        model = net(torch.float64)
        lr = torch.tensor(1e-2, dtype=torch.float64) if tensor_lr else 1e-2
        optimizer = make(
            model.parameters(), lr=lr, **({"foreach": False} if make is torch.optim.AdamW else {})
        )
        train(model, optimizer, 10, scheduler=schedule(optimizer))
        ends.append(trained(model))
    for name, want in ends[0].items():
        torch.testing.assert_close(ends[1][name], want, rtol=0, atol=1e-12 if on_host else 2e-7)


def test_groups_have_their_own_settings():
    groups = {
        "first": {"lr": 1e-3, "weight_decay": 0.5},
        "second": {"betas": (0.8, 0.9)},
        "third": {"maximize": True},
    }
    ends = []
    for make in (torch.optim.AdamW, sft.SelectiveAdamW):
        model = net(torch.float64)
        split = [
            {"params": getattr(model, name).parameters(), **settings}
            for name, settings in groups.items()
        ]
        split[2]["params"] = [p for p in split[2]["params"] if p.requires_grad]
        optimizer = make(split, lr=1e-2)
        optimizer.add_param_group(
            {"params": [p for p in model.conv.parameters() if p.requires_grad], "eps": 1e-2}
        )
        train(model, optimizer, 10)
        ends.append(trained(model))
        # In no group.
        assert torch.equal(ends[-1]["embed.values"], trained(net(torch.float64))["embed.values"])
    for name, want in ends[0].items():
        torch.testing.assert_close(ends[1][name], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_no_decay_by_name(grouped):
    model, lr, decay = net(), 0.1, 0.5
    params = [{"params": list(model.named_parameters())}] if grouped else model.named_parameters()
    optimizer = sft.SelectiveAdamW(params, lr, weight_decay=decay, no_decay=("*.bias", "norm*"))
    decays = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    exempt = {name for name in trained(model) if name.endswith("bias") or name.startswith("norm")}
    assert decays == {name: 0.0 if name in exempt else decay for name in trained(model)}
    before = trained(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    for name, values in trained(model).items():
        torch.testing.assert_close(
            values, before[name] * (1 - lr * decays[name]), rtol=1e-6, atol=0
        )
    assert_weights_show_values(model)


def test_no_decay_knows_selected_parameters_by_their_own_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    plan = {"0.weight": sft.Columns([1]), "0.bias": sft.Entries([1, 2]), "1.bias": "all"}
    sft.convert(model, plan | {"1.weight": sft.Entries([0]), "2.weight": sft.Rows([3])})
    exempt_by = {
        ("*.bias", "1.weight"): {"0.bias_selected.values", "1.bias", "1.weight_selected.values"},
        ("*.weight",): {"0.values", "1.weight_selected.values", "2.values"},
        ("2.values", "0.bias_selected.values"): {"2.values", "0.bias_selected.values"},
    }
    for patterns, exempt in exempt_by.items():
        optimizer = sft.SelectiveAdamW(
            model.named_parameters(), weight_decay=0.5, no_decay=patterns
        )
        found = {
            name
            for group in optimizer.param_groups
            if group["weight_decay"] == 0
            for name in group["param_names"]
        }
        assert found == exempt, patterns
    wrapped = nn.ModuleDict({"module": model})
    optimizer = sft.SelectiveAdamW(
        wrapped.named_parameters(), weight_decay=0.5, no_decay="module.0.*eight"
    )
    assert [
        group["param_names"] for group in optimizer.param_groups if not group["weight_decay"]
    ] == [["module.0.values"]]


def test_a_pattern_that_matches_nothing_is_warned_of_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    sft.convert(model, {"0.weight": sft.Columns([1]), "0.bias": "all"})
    with pytest.warns(
        UserWarning,
        match=r"no_decay: '\*\.bais' matches no parameter.* names look like '0.bias', '0.weight'",
    ):
        sft.SelectiveAdamW(model.named_parameters(), no_decay=("*.bias", "*.bais"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # frozen, and no mistake
        sft.SelectiveAdamW(model.named_parameters(), no_decay=("*.bias", "1.*"))


def test_closure_is_evaluated_with_gradients_and_its_loss_returned():
    model, other = net(), net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert torch.equal(optimizer.step(closure), loss_of(other, 0))
    train(other, sft.SelectiveAdamW(other.parameters(), 1e-2), 1)
    assert_same_bits(weights(model), weights(other))


def test_clip_grad_norm_sees_the_norm_of_the_masked_gradient():
    torch.manual_seed(0)
    dense = Net().double()
    model = copy.deepcopy(dense)
    sft.convert(model, PLAN)
    for m in (dense, model):
        loss_of(m, 0).backward()
    masked = [
        p.grad if PLAN[n] == "all" else p.grad.view(s) * PLAN[n].mask(s).to(p.device)
        for n, p in dense.named_parameters()
        if n in PLAN
        for s in [sft.matrix_shape(dense, n)]
    ]
    want = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in masked]))
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), want.item() / 3), want)
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(torch.linalg.vector_norm(grads), want / 3, rtol=1e-5, atol=0)


def test_gradients_in_any_memory():
    """Expanded, strided and accumulated into by hand: what autograd may leave in `.grad`."""
    model = nn.Linear(4, 6, bias=False)
    sft.convert(model, {"weight": sft.Columns([0, 2])})
    optimizer = sft.SelectiveAdamW(model.parameters(), 0.1, weight_decay=0)
    for grad in (torch.ones(()).expand(6, 2), torch.ones(2, 6).T):
        before = model.values.detach().clone()
        model.values.grad = grad
        optimizer.step()
        torch.testing.assert_close(model.values.detach(), before - 0.1)
    assert_weights_show_values(model)


# Saving and resuming.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("assign", [False, True])
def test_resumes_bit_for_bit(dtype, assign):
    """From files only, into a model born with other weights.

    Fp32 values over 16-bit weights come back in full.
    """
    model = net(dtype)
    optimizer = sft.SelectiveAdamW(model.named_parameters(), 1e-2, no_decay="*.bias")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    train(model, optimizer, 4, scheduler=scheduler)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    train(model, optimizer, 4, start=4, scheduler=scheduler)

    fresh = net(dtype, seed=1)
    file.seek(0)
    saved = torch.load(file)
    fresh.load_state_dict(saved[0], assign=assign)
    again = sft.SelectiveAdamW(fresh.named_parameters(), 5.0, no_decay="*.bias")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(again, 10)
    again.load_state_dict(saved[1])
    schedule.load_state_dict(saved[2])
    assert_weights_show_values(fresh)
    train(fresh, again, 4, start=4, scheduler=schedule)
    assert_same_bits(everything(fresh, again), everything(model, optimizer))
    if dtype.itemsize == 2:
        assert (
            fresh.first.values.dtype
            == fresh.get_submodule("conv.weight_selected").values.dtype
            == torch.float32
        )


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled])
def test_model_and_optimizer_copied_together_train_on_alike(clone):
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, skip_nonfinite=True)
    train(model, optimizer, 2)
    twin, again = clone((model, optimizer))
    train(model, optimizer, 2, start=2)
    assert again.skip_nonfinite and again.skipped_steps == 0
    train(twin, again, 2, start=2)
    assert_weights_show_values(twin)
    assert_same_bits(everything(twin, again), everything(model, optimizer))


# What it writes.


def test_weights_show_the_values_after_a_step_without_a_forward():
    model = net()
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    train(model, optimizer, 1)
    assert_weights_show_values(model)
    versions = {name: p._version for name, p in model.named_parameters()}
    loss_of(model, 0)
    assert versions == {name: p._version for name, p in model.named_parameters()}, (
        "the forward wrote what was written"
    )


def test_a_plain_parameter_in_channels_last_memory():
    torch.manual_seed(0)
    ours = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    torchs = copy.deepcopy(ours)
    optimizers = (
        sft.SelectiveAdamW(ours.parameters(), lr=0.1),
        torch.optim.AdamW(torchs.parameters(), lr=0.1),
    )
    for _ in range(3):
        x = torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last)
        for model, optimizer in zip((ours, torchs), optimizers):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert ours.weight.stride() == torchs.weight.stride()
    torch.testing.assert_close(ours.weight, torchs.weight)
