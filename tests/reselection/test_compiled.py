"""A compiled model is compiled once, however often its selections change."""

import pytest
import torch
from helpers.reselected import loss_of, net, plan_of

import sparse_ft as sft

pytestmark = pytest.mark.skipif(
    not torch._dynamo.is_dynamo_supported() if hasattr(torch, "_dynamo") else True,
    reason="no torch.compile",
)


def test_one_compilation_over_ten_reselects():
    torch._dynamo.reset()
    compilations = []

    def counted(graph, inputs):
        compilations.append(graph)
        return graph.forward

    ends = []
    for compiled in (True, False):
        model = net(torch.float64)
        plan = {name: plan_of(0)[name] for name in ("first.weight", "third.weight")}
        sft.convert(model, plan)
        run = torch.compile(model, backend=counted) if compiled else model
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-3)
        for number in range(22):
            if number and number % 2 == 0:
                new = {name: plan_of(number)[name] for name in plan}
                sft.reselect(model, optimizer, new)
            loss_of(run, number, torch.float64).backward()
            optimizer.step()
            optimizer.zero_grad()
            if number == 1:
                first = len(compilations)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert len(compilations) == first
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
