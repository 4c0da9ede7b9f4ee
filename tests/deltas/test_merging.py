"""Several deltas as one: disjoint ones add up exactly, overlaps as mergekit defines its methods.

mergekit works on whole models. What it does to one tensor is restated here (`mergekit`), from its
generalized_task_arithmetic.py, sparsify.py and linear.py.
"""

import dataclasses

import pytest
import torch
from helpers import small_deltas
from helpers.small_deltas import net, same_bits, trained

import sparse_ft as sft

NAME = "layers.3.weight"


def mergekit(
    base,
    models,
    weights,
    *,
    sparsify=None,
    consensus=False,
    normalize=False,
    density=1.0,
    draw=None,
):
    """One tensor of a merge: task vectors, sparsified, with or without sign consensus."""
    deltas = torch.stack(
        [sparsify(m - base, density, draw) if sparsify else m - base for m in models]
    )
    weights = torch.tensor(weights, dtype=deltas.dtype)
    while deltas.dim() > weights.dim():
        weights = weights.unsqueeze(-1)
    weighted = deltas * weights
    if consensus:
        majority = (weighted.sum(0) >= 0).to(weighted.dtype) * 2 - 1
        mask = weighted.sign() == majority
        mixed, divisor = (weighted * mask).sum(0), (weights * mask).sum(0)
        divisor[divisor == 0] = 1
    else:
        mixed, divisor = weighted.sum(0), weights.sum(0)
        divisor[divisor.abs() < 1e-8] = 1
    return base + (mixed / divisor if normalize else mixed)


def magnitude(tensor, density, draw):
    """mergekit's sparsify.magnitude."""
    mask = torch.zeros_like(tensor)
    mask.view(-1)[
        tensor.abs().view(-1).argsort(descending=True)[: int(density * tensor.numel())]
    ] = 1
    return tensor * mask


def bernoulli(tensor, density, draw):
    """mergekit's sparsify.bernoulli with the rescaling of DARE: by the l1 norm."""
    mask = torch.bernoulli(torch.full_like(tensor, density), generator=draw)
    masked = tensor * mask
    return masked * (tensor.abs().sum() / masked.abs().sum())


RULES = {
    "sum": {},
    "mean": {"normalize": True},
    "ties": {"sparsify": magnitude, "consensus": True, "normalize": True},
    "dare": {"sparsify": bernoulli},
    "dare_ties": {"sparsify": bernoulli, "consensus": True},
}


def whole(seed):
    """A delta of every entry of two tensors."""
    base, other = net(), net()
    generator = torch.Generator().manual_seed(seed)
    for name in (NAME, "head.weight"):
        weight = other.get_parameter(name).data
        weight += torch.randn(weight.shape, generator=generator)
    return sft.diff(base, other)


@pytest.mark.parametrize("density", [1.0, 0.4])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 0.3, 0.9]])
@pytest.mark.parametrize("rule", RULES)
def test_overlaps_are_mixed_as_by_mergekit(rule, weights, density):
    deltas = [whole(seed) for seed in (1, 2, 3)]
    merged = sft.merge(deltas, rule, weights=weights, density=density, seed=7)
    base, draw = net(), torch.Generator().manual_seed(7)
    for name in merged:
        models = [delta[name].values for delta in deltas]
        wanted = mergekit(
            base.get_parameter(name).data,
            models,
            weights,
            density=density,
            draw=draw,
            **RULES[rule],
        )
        torch.testing.assert_close(merged[name].values, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_entries_that_overlap_in_part(rule):
    """As mergekit on the entries, where those that a delta does not touch differ by nothing."""
    first = trained({NAME: sft.Entries(range(0, 90))})
    second = trained({NAME: sft.Entries(range(50, 140))}, steps=5)
    deltas = [sft.Delta({NAME: sft.Delta.of(each)[NAME]}) for each in (first, second)]
    deltas = [sft.deltas.on_base(delta, net()) for delta in deltas]
    merged = sft.merge(deltas, rule, weights=[1.0, 1.0])
    base = net().layers[3].weight.data
    models = [each.layers[3].weight.detach() for each in (first, second)]
    recipe = {key: value for key, value in RULES[rule].items() if key != "sparsify"}
    wanted = mergekit(base, models, [1.0, 1.0], **recipe)
    if rule == "mean":  # of those that touch an entry, so that what one alone changed stays
        touched = sum(part[NAME].selection.mask((12, 12)).long() for part in deltas).clamp(min=1)
        wanted = base + (mergekit(base, models, [1.0, 1.0]) - base) / touched
    got = sft.apply(net(), merged, force=True).layers[3].weight.data
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def disjoint():
    """Two deltas of one base: other tensors, and other entries of one tensor."""
    plans = (
        {"layers.0.weight": sft.Rows([1]), NAME: sft.Entries([1, 5, 140])},
        {"layers.1.weight": sft.Blocks([[1, 0]], (5, 7)), NAME: sft.Entries([2, 6, 143])},
    )
    models = [trained(plan, steps=steps) for plan, steps in zip(plans, (3, 5))]
    for model in models:
        model.batch_norm.load_state_dict(net().batch_norm.state_dict())
    return [sft.diff(net(), small_deltas.reverted(model)) for model in models]


@pytest.mark.parametrize("rule", [None, "sum", "mean", "ties"])
def test_disjoint_deltas_add_up_exactly(rule):
    a, b = disjoint()
    merged = sft.merge([a, b], rule)
    both = sft.apply(sft.apply(net(), a), b)
    one = sft.apply(net(), merged)  # whose base is looked at as well
    assert same_bits(one, both)
    assert same_bits(sft.remove(one), net())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", [None, *RULES])
def test_negative_zeros_add_up_exactly(rule, dtype):
    models = [net(dtype), net(dtype)]
    models[0].layers[3].weight.data[0, :2] = torch.tensor([-0.0, torch.inf])
    models[1].layers[3].weight.data[1, :2] = torch.tensor([-0.0, 3.0])
    a, b = (sft.diff(net(dtype), model) for model in models)
    both = sft.apply(sft.apply(net(dtype), a), b)
    assert same_bits(sft.apply(net(dtype), sft.merge([a, b], rule)), both)


def test_disjoint_deltas_need_no_base():
    a, b = (
        sft.Delta({name: part_without_origin(part) for name, part in each.items()}, each.rest)
        for each in disjoint()
    )
    merged = sft.merge([a, b])
    assert same_bits(sft.apply(net(), merged), sft.apply(sft.apply(net(), a), b))


def part_without_origin(part):
    return dataclasses.replace(part, origin=None)


def test_the_merged_delta_knows_its_base():
    merged = sft.merge(disjoint())
    other = net()
    other.layers[3].weight.data[6, 6] += 1  # of a tensor that both change
    with pytest.raises(ValueError, match=f"'{NAME}' has other numbers"):
        sft.apply(other, merged)
    other = net()
    other.layers[2].weight.data[6, 6] += 1  # of one that none changes
    with pytest.raises(ValueError, match="what the delta leaves alone"):
        sft.apply(other, merged)


def test_a_merged_file_is_like_any_other(tmp_path):
    merged = sft.save_delta(sft.merge(disjoint()), tmp_path / "delta")
    assert same_bits(sft.apply(net(), sft.load_delta(tmp_path / "delta")), sft.apply(net(), merged))


def test_the_base_can_be_given_later(tmp_path):
    model = trained()
    sft.save_delta(model, tmp_path / "delta")
    delta = sft.load_delta(tmp_path / "delta")
    known = sft.deltas.on_base(delta, net())
    assert known.has_origin and not delta.has_origin
    with pytest.raises(ValueError, match="deltas: nothing tells what the base holds of"):
        sft.merge([delta, delta], "sum", weights=[0.5, 0.5])
    parts = {name: part for name, part in delta.items() if "batch_norm" not in name}
    half = sft.Delta(parts, None)
    merged = sft.merge([half, half], "sum", weights=[0.5, 0.5], base=net())
    for name in merged:
        torch.testing.assert_close(merged[name].values, delta[name].values)
    with pytest.raises(ValueError, match="model: it is not the base"):
        sft.deltas.on_base(delta, net(seed=3))


def test_deltas_of_other_bases_are_refused():
    def of(seed):
        other = net(seed=seed)
        other.layers[3].weight.data[0, 0] += 1
        return sft.diff(net(seed=seed), other)

    with pytest.raises(ValueError, match=f"deltas: they are of different bases.*'{NAME}'"):
        sft.merge([of(0), of(1)], "mean")


def test_what_cannot_be_merged_is_named():
    a, b = whole(1), whole(2)
    with pytest.raises(
        ValueError, match=f"rule: deltas change the same entries of '{NAME}'.*'ties'"
    ):
        sft.merge([a, b])
    with pytest.raises(ValueError, match="rule: expected one of 'sum'.*got 'magic'"):
        sft.merge([a, b], "magic")
    with pytest.raises(ValueError, match="weights: expected 2"):
        sft.merge([a, b], "sum", weights=[1])
    with pytest.raises(ValueError, match="density: expected a share in .0, 1., got 0"):
        sft.merge([a, b], "ties", density=0)
    with pytest.raises(TypeError, match="deltas: expected a list of Delta"):
        sft.merge([])
    wide = sft.diff(net(torch.float64), trained({NAME: sft.Rows([0])}, torch.float64))
    with pytest.raises(ValueError, match=f"deltas: '{NAME}' is .*float64.*float32"):
        sft.merge([a, wide], "sum")
    counters = sft.diff(net(), small_deltas.reverted(trained()))
    with pytest.raises(ValueError, match="'batch_norm.num_batches_tracked' is torch.int64"):
        sft.merge([counters, counters], "mean")


def test_merging_changes_none_of_its_deltas():
    deltas = [whole(1), whole(2)]
    before = [{name: part.values.clone() for name, part in delta.items()} for delta in deltas]
    sft.merge(deltas, "dare_ties", density=0.5)
    for delta, values in zip(deltas, before):
        assert all(torch.equal(delta[name].values, values[name]) for name in values)
