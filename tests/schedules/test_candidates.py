"""Candidates: the entries outside of the selection with the largest gradients, summed exactly."""

import copy

import pytest
import torch
from helpers.looks import assert_left_alone, looks
from torch import nn

import sparse_ft as sft

pytest.importorskip("transformers")
from helpers import choosing_models  # noqa: E402


@pytest.mark.parametrize("kind", ["Llama", "GPT-2"])
def test_found_and_added_up_as_in_the_dense_model(kind):
    case = choosing_models.case(kind)
    plan = sft.select(case.model, density=0.3, structure="entries", score="magnitude")
    dense = copy.deepcopy(case.model)
    sft.convert(case.model, plan)
    candidates = sft.Candidates(case.model, 12)
    before = looks(case.model)
    found = candidates.find(case.batches)
    assert_left_alone(case.model, before[:2] + looks(case.model)[2:3] + before[3:])

    def gradients(batch):
        weights = [dense.get_parameter(name) for name in plan]
        return dict(zip(plan, torch.autograd.grad(dense(**batch).loss, weights)))

    first, second = (gradients(batch) for batch in case.batches)
    for name, selection in plan.items():
        shape = first[name].shape
        outside = (first[name] + second[name]).abs() * ~selection.mask(shape)
        best = outside.flatten().topk(12).indices.sort().values
        assert found[name].index.tolist() == best.tolist()

    steps = [[first], [first, second], [second]]  # two batches are accumulated in the second
    for batches in ([0], [0, 1], [1]):
        for number in batches:
            case.model(**case.batches[number]).loss.backward()
        candidates.step()
    seeds = candidates.seeds() if hasattr(sft, "reselect") else {}
    for name, entries in found.items():
        every = [sum(entries.gather(g[name]) for g in step) for step in steps]
        assert torch.allclose(candidates.sums[name].double(), sum(every), rtol=1e-5, atol=1e-9)
        if name in seeds:
            assert seeds[name].steps == 3
            squares = sum(g.square() for g in every) / 3
            assert torch.allclose(seeds[name].grad_squared.double(), squares, rtol=1e-4)
    candidates.remove()
    assert candidates.sums == {}
    case.model(**case.batches[0]).loss.backward()


def test_what_has_no_candidates_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(ValueError, match="model: it is not converted"):
        sft.Candidates(model, 2)
    sft.convert(model, {"0.weight": sft.Rows([1]), "1.weight": sft.Entries([0])})
    assert sft.Candidates(model, 2).left == ["1.weight"]
    with pytest.raises(ValueError, match="per_tensor: .*got 0"):
        sft.Candidates(model, 0)
    sft.revert(model)
    sft.convert(model, {"1.weight": sft.Entries([0])})
    with pytest.raises(ValueError, match="model: none of its selected weights"):
        sft.Candidates(model, 2)
