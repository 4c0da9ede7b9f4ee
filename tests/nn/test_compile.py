"""torch.compile: one graph, one compilation over many steps, no buffer of the weight's size in the
generated code.
"""

import re

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_fw_bw_and_get_code

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("on_device")


def make(structure):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 40))
    sft.convert(
        model, sft.select(model, density=0.1, score="random", structure=structure, block_size=16)
    )
    return model


@pytest.mark.parametrize("structure", ["rows", "columns", "blocks", "entries"])
def test_one_compilation_over_many_steps(structure):
    torch._dynamo.reset()
    eager, other = make(structure), make(structure)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(other, fullgraph=True, backend=counter)
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2, fused=True)
        for m in (eager, other)
    ]
    x, y = torch.randn(32, 48), torch.randn(32, 40)
    for _ in range(12):
        for model, optimizer in zip((eager, compiled), optimizers):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    assert counter.frame_count == 1
    torch.testing.assert_close(eager[0].weight, other[0].weight)
    torch.testing.assert_close(eager[2].weight, other[2].weight)


@pytest.mark.parametrize("structure", ["columns", "entries"])
def test_generated_code_has_no_weight_sized_buffer(structure):
    torch._dynamo.reset()
    linear = nn.Linear(512, 384)
    sft.convert(
        linear,
        {"weight": sft.select(linear, density=0.05, score="random", structure=structure)["weight"]},
    )
    compiled, x = torch.compile(linear, fullgraph=True), torch.randn(4, 512, requires_grad=True)
    _, codes = run_fw_bw_and_get_code(lambda: compiled(x).relu())
    sizes = [
        eval(shape)
        for code in codes
        for shape in re.findall(r"empty_strided_\w+\((\([\d, ]+\))", code)
    ]
    assert sizes and "sparse_ft.scatter_selected_" in "".join(codes)
    assert max(torch.Size(size).numel() for size in sizes) < 512 * 384 // 4
    assert "copy_" not in "".join(re.findall(r"torch\.ops\.aten\S+", "".join(codes)))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
def test_aliases_and_layers_used_twice(autocast, device):
    """One graph for a model that reads some weights through an alias, each module twice, under an
    optimiser of torch.
    """

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, x):
            return self.linear(self.norm(self.linear(self.norm(x))))

    def train(compiled):
        torch.manual_seed(0)
        model = Twice()
        sft.convert(
            model, {"norm.weight": sft.Entries([1, 2]), "linear.weight": sft.Columns([0, 5])}
        )
        run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                out = run(torch.randn(4, 6))
            out.float().square().mean().backward()
            optimizer.step()
        return sft.revert(model).state_dict()

    expected, got = train(compiled=False), train(compiled=True)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])


def test_conv1d_and_embedding_in_one_graph():
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(30, 16, padding_idx=0), Conv1D(24, 16))
        sft.convert(model, {"0.weight": sft.Rows([0, 3, 29]), "1.weight": sft.Rows([1, 5])})
        return model

    torch._dynamo.reset()
    eager, other = make(), make()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    optimizers = [sft.SelectiveAdamW(m.parameters(), lr=0.1) for m in (eager, other)]
    ids = torch.randint(30, (4, 7))
    for _ in range(3):
        for model, optimizer in zip((eager, compiled), optimizers):
            optimizer.zero_grad()
            model(ids).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(eager[0].weight, other[0].weight)
    torch.testing.assert_close(eager[1].weight, other[1].weight)
