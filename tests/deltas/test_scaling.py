"""WiSE-FT, LiNeS, model stock and momentum over deltas, against the same on whole weights."""

import itertools

import pytest
import torch
from helpers.small_deltas import net, same_bits, trained

import sparse_ft as sft
from sparse_ft import deltas


def change(name, seed, entries=None):
    base, other = net(), net()
    weight = other.get_parameter(name).data
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    if entries is not None:
        noise *= sft.Entries(entries).mask(noise.shape)
    weight += noise
    return sft.diff(base, other), weight


def applied(delta, name):
    return sft.apply(net(), delta).get_parameter(name).data


def test_wise_ft():
    delta, weight = change("head.weight", 1, range(7, 50, 3))
    base = net().head.weight.data
    for alpha in (0.3, 2.0):
        got = applied(deltas.wise_ft(delta, alpha), "head.weight")
        torch.testing.assert_close(got, base + alpha * (weight - base))
    assert torch.equal(applied(deltas.wise_ft(delta, 0.0), "head.weight"), base)
    assert torch.equal(applied(deltas.wise_ft(delta, 1.0), "head.weight"), weight)


def test_lines():
    """Little of what is in the first layers, much of what is in the last."""
    names = ["embed.weight", *(f"layers.{i}.weight" for i in range(4)), "head.weight"]
    base, other = net(), net()
    for name in names:
        other.get_parameter(name).data += 1
    scaled = deltas.lines(sft.diff(base, other), 0.25, 0.6)
    got = sft.apply(net(), scaled)
    for name, layer in zip(names, (0, 0, 1, 2, 3, 3)):
        added = got.get_parameter(name).data - base.get_parameter(name).data
        torch.testing.assert_close(added, torch.full_like(added, 0.25 + 0.6 * layer / 3))
    mine = deltas.lines(
        sft.diff(base, other), 0.0, 1.0, layer_of=lambda name: name.startswith("head")
    )
    assert torch.equal(applied(mine, "embed.weight"), base.embed.weight.data)
    assert torch.equal(applied(mine, "head.weight"), other.head.weight.data)


def stock(base, models):
    """mergekit's model_stock of one tensor."""
    offsets = [(model - base).view(-1) for model in models]
    cosines = [
        ((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-6)).clamp(-1, 1)
        for a, b in itertools.combinations(offsets, 2)
    ]
    cosine, count = torch.stack(cosines).mean(), len(models)
    t = (count * cosine) / (1 + (count - 1) * cosine)
    return t * sum(models) / count + (1 - t) * base


@pytest.mark.parametrize("entries", [None, True])
def test_model_stock_as_by_mergekit(entries):
    name, base = "layers.3.weight", net().layers[3].weight.data
    changed = [
        change(name, seed, None if entries is None else range(seed * 10, 100 + seed * 10))
        for seed in (1, 2, 3)
    ]
    merged = deltas.model_stock([delta for delta, _ in changed])
    wanted = stock(base, [weight for _, weight in changed])
    torch.testing.assert_close(applied(merged, name), wanted, rtol=1e-5, atol=1e-6)


def test_momentum():
    name, base = "layers.3.weight", net().layers[3].weight.data
    changed = [change(name, seed, range(seed, 130, seed)) for seed in (1, 2, 3)]
    slow = base
    for _, weight in changed:
        slow = 0.8 * slow + 0.2 * weight
    followed = deltas.momentum([delta for delta, _ in changed], 0.8)
    torch.testing.assert_close(applied(followed, name), slow, rtol=1e-5, atol=1e-6)
    last = deltas.momentum([changed[0][0], changed[1][0]], 0.0)
    torch.testing.assert_close(applied(last, name), changed[1][1])


def test_counters_and_untouched_tensors_pass():
    model = sft.revert(trained())
    delta = sft.diff(net(), model)
    assert same_bits(sft.apply(net(), deltas.wise_ft(delta, 1.0)), model)
    other, _ = change("layers.3.weight", 1)
    both = deltas.momentum([other, delta], 0.0)
    assert same_bits(sft.apply(net(), both), model) or "layers.3.weight" in delta


def test_what_is_missing_is_named():
    delta = sft.Delta.of(trained())
    with pytest.raises(ValueError, match="delta: nothing tells .*sft.deltas.on_base"):
        deltas.wise_ft(delta, 0.5)
    with pytest.raises(ValueError, match="deltas: model stock needs two or more, got 1"):
        deltas.model_stock([delta])
    with pytest.raises(ValueError, match="beta: expected a number in .0, 1., got 2"):
        deltas.momentum([delta], 2)
