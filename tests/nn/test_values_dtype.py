"""values of a dtype that was asked for.

Which are refused, what keeps it, and that everything around them still works.
"""

import copy
import pickle

import pytest
import torch
from helpers.small_net import (
    PLAN,
    Net,
    assert_same_bits,
    assert_weights_show_values,
    loss_of,
    train,
    trained,
    weights,
)

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

BF16 = torch.bfloat16


def net(weight_dtype=BF16, values_dtype=BF16):
    torch.manual_seed(0)
    model = Net().to(weight_dtype)
    sft.convert(model, PLAN, values_dtype=values_dtype)
    return model


def dtypes(model):
    return {
        m._parameters["values"].dtype for m in model.modules() if isinstance(m, sft.nn.Selected)
    }


@pytest.mark.parametrize("cast", ["half", "bfloat16", "float", "double"])
@pytest.mark.parametrize("chosen", [BF16, torch.float64])
def test_a_chosen_dtype_survives_casts_and_copies(cast, chosen):
    model = net(values_dtype=chosen)
    before = trained(model)
    assert dtypes(getattr(model, cast)()) == {chosen}
    assert dtypes(copy.deepcopy(model)) == dtypes(pickle.loads(pickle.dumps(model))) == {chosen}
    assert_same_bits(
        {n: t for n, t in trained(model).items() if "values" in n},
        {n: t for n, t in before.items() if "values" in n},
    )


def test_without_a_choice_values_are_wide():
    assert dtypes(net(values_dtype=None)) == {torch.float32}
    assert dtypes(net(torch.float64, None)) == {torch.float64}


@pytest.mark.parametrize(
    "weight_dtype, values_dtype",
    [
        (torch.float32, BF16),
        (torch.float16, BF16),
        (BF16, torch.float16),
        (torch.float64, torch.float32),
    ],
)
def test_a_dtype_that_loses_bits_is_refused_and_nothing_changes(weight_dtype, values_dtype):
    model = Net().to(weight_dtype)
    before = weights(model)
    with pytest.raises(
        TypeError, match=r"values_dtype: .* does not hold every number of embed.weight"
    ):
        sft.convert(model, PLAN, values_dtype=values_dtype)
    assert_same_bits(weights(model), before)
    assert not any(isinstance(m, sft.nn.Selected) for m in model.modules())


@pytest.mark.parametrize("wrong", ["bfloat16", torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_what_is_no_dtype_for_values_is_refused(wrong):
    with pytest.raises(TypeError, match="values_dtype: expected None, float16"):
        sft.convert(Net(), PLAN, values_dtype=wrong)


def test_another_dtype_on_a_converted_model_is_refused():
    model = net()
    sft.convert(model, PLAN, values_dtype=BF16)
    with pytest.raises(
        ValueError, match="values_dtype: the model was converted with torch.bfloat16, got None"
    ):
        sft.convert(model, PLAN)


@pytest.mark.parametrize(
    "make",
    [torch.optim.AdamW, lambda p, lr: torch.optim.AdamW(p, lr, fused=True), sft.SelectiveAdamW],
)
def test_16_bit_values_train_load_and_revert(make):
    model = net()
    optimizer = make(model.parameters(), lr=1e-2)
    train(model, optimizer, 3)
    assert all(p.grad.dtype == p.dtype for p in model.parameters() if p.grad is not None)
    assert dtypes(model) == {BF16} and loss_of(model, 0).isfinite()
    sft.sync(model)
    assert_weights_show_values(model)
    other = net()
    other.load_state_dict(model.state_dict())
    assert_same_bits(trained(other), trained(model))
    values = model.first.values.detach().clone()
    sft.revert(model)
    assert torch.equal(model.first.weight[:, [1, 3]], values)


def test_the_estimate_counts_them():
    found = {
        dtype: sft.estimate(
            torch.nn.Linear(64, 32).to(BF16),
            {"weight": sft.Columns([1, 5])},
            inputs={"input": torch.randn(3, 64, dtype=BF16)},
            values_dtype=dtype,
        )
        for dtype in (None, BF16)
    }
    assert found[None].values == 4 * 64 and found[BF16].values == 2 * 64
    assert found[BF16].optimizer_state == found[None].optimizer_state - 2 * 2 * 64


@pytest.mark.parametrize(
    "settings, entry", [({"stochastic_rounding": True}, 4), ({"correction": True}, 10)]
)
def test_the_estimate_counts_what_an_optimiser_stores(settings, entry):
    def optimizer(params):
        return sft.SelectiveAdamW(params, **settings)

    linear, inputs = (
        torch.nn.Linear(64, 32, bias=False).to(BF16),
        {"input": torch.randn(3, 64, dtype=BF16)},
    )
    found = sft.estimate(
        linear,
        {"weight": sft.Columns([1, 5])},
        inputs=inputs,
        values_dtype=BF16,
        optimizer=optimizer,
    )
    assert found.optimizer_state == entry * 64 + 4
