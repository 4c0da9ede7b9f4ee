"""What trained over quantised weights, written into them."""

import pytest
import torch
from helpers.quantised import FORMATS, HIDDEN, network, plan_of, quantise
from torch import nn

import sparse_ft as sft


def trained(form, lr=1e-2, kind="rows", dtype=torch.float32):
    torch.manual_seed(3)
    model = quantise(network().to(dtype), form)
    sft.convert(model, plan_of(model, kind))
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=lr)
    for _ in range(3):
        model(torch.randn(8, HIDDEN, dtype=dtype)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def output(model):
    dtype = next(p.dtype for n, p in model.named_parameters() if n.endswith("bias"))
    with torch.no_grad():
        return model(torch.linspace(-1, 1, 2 * HIDDEN).view(2, HIDDEN).to(dtype))


@pytest.mark.parametrize("form", FORMATS)
def test_into_plain_layers(form):
    model = trained(form)
    before = output(model)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    merged = sft.merge_quantised(model)
    assert [type(model[i]) for i in (0, 2, 4)] == [nn.Linear] * 3
    assert [type(p) for p in model.parameters()] == [nn.Parameter] * 6
    assert set(vars(model[2])) == set(vars(nn.Linear(1, 1))), form
    torch.testing.assert_close(output(model), before, rtol=1e-6, atol=1e-6)
    assert calls
    assert [row.lost for row in merged.rows] == [0.0] * 3
    assert [*model.state_dict()] == [*network().state_dict()]
    sft.convert(model, plan_of(model, "rows"))  # and trains on


def test_rounding_to_half_precision_is_told():
    model = trained("nf4", dtype=torch.bfloat16)
    merged = sft.merge_quantised(model)
    assert all(0 < row.lost < 0.5 for row in merged.rows)
    assert "0.weight" in str(merged) and "torch.bfloat16" in str(merged)


@pytest.mark.parametrize("form", FORMATS)
def test_into_its_own_format(form):
    model, plain = trained(form, lr=0.1), quantise(network(), form)
    before = output(model)
    merged = sft.merge_quantised(model, requantise=True)
    assert [type(model[i]) for i in (0, 2, 4)] == [type(plain[i]) for i in (0, 2, 4)]
    assert [type(model[i].weight) for i in (0, 2, 4)] == [type(plain[0].weight)] * 3
    assert [*model.state_dict()] == [*plain.state_dict()]
    lost = [row.lost for row in merged.rows]
    assert all(0 < each < 1 for each in lost)
    # no further from the trained model than the base is, and less far in 8 bits than in 4
    off = (output(model) - before).norm() / (output(plain) - before).norm()
    assert off < (1 if "4" in form else 0.3)
    sft.convert(model, plan_of(model, "rows"))
    assert sft.quantised.quantiser_of(model[0]) is not None


def test_more_noise_than_training_is_warned_of():
    model = trained("nf4", lr=1e-5)
    with pytest.warns(UserWarning, match="quantised anew, rounding changed its weight by"):
        merged = sft.merge_quantised(model, requantise=True)
    assert max(row.lost for row in merged.rows) > 0.5


def test_what_cannot_be_merged_is_refused():
    with pytest.raises(ValueError, match="model: it was not converted"):
        sft.merge_quantised(network())
    model = network()
    sft.convert(model, plan_of(model, "rows"))
    with pytest.raises(ValueError, match="no selected entries are of a quantised layer"):
        sft.merge_quantised(model)


def test_a_format_that_cannot_be_requantised_is_left_as_it_was():
    class Tenths(sft.quantised.Quantiser):
        name = "tenths"

        class Layer(nn.Linear):
            pass

        REPLACES = (Layer,)

        @staticmethod
        def dequantise(layer, dtype):
            return layer.weight.to(dtype) / 10

    model = nn.Sequential(Tenths.Layer(8, 8))
    sft.convert(model, {"0.weight": sft.Rows([0])})
    with pytest.raises(ValueError, match="requantise: '0.weight' .* 'tenths'.*requantise=False"):
        sft.merge_quantised(model, requantise=True)
    assert isinstance(model[0], sft.quantised.Quantised)
    sft.merge_quantised(model)
    assert type(model[0]) is nn.Linear
    sft.quantised.quantiser.QUANTISERS.remove(Tenths)
