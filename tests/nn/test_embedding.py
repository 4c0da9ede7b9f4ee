"""SelectiveEmbedding: only the selected rows move, padding and repeats are right."""

import pytest
import torch
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_equals_the_gathered_dense_one(padding_idx, dtype):
    torch.manual_seed(0)
    dense = nn.Embedding(20, 6, padding_idx=padding_idx, dtype=dtype)
    twin = nn.Embedding(20, 6, padding_idx=padding_idx, dtype=dtype)
    twin.load_state_dict(dense.state_dict())
    module = sft.nn.SelectiveEmbedding.from_embedding(twin, sft.Rows([0, 3, 7, 19]))
    ids = torch.tensor([[3, 7, 7, 1], [19, 0, 18, 3]])
    assert torch.equal(dense(ids), module(ids))
    grad = torch.randn(2, 4, 6).to(dtype)
    dense(ids).backward(grad)
    module(ids).backward(grad)
    tolerance = (
        {"atol": 1e-6, "rtol": 0} if dtype == torch.float32 else {"atol": 2**-6, "rtol": 2**-7}
    )
    torch.testing.assert_close(
        module.selection.gather(dense.weight.grad).float(), module.values.grad, **tolerance
    )


def test_unselected_rows_never_move():
    module = sft.nn.SelectiveEmbedding.from_embedding(nn.Embedding(20, 6), sft.Rows([2, 5]))
    before = module.weight.detach().clone()
    optimizer = sft.SelectiveAdamW([module.values], lr=0.1, weight_decay=0.5)
    for _ in range(5):
        module(torch.arange(20)).square().sum().backward()
        optimizer.step()
    moved = (module.weight != before).any(1).nonzero().squeeze(1).tolist()
    assert moved == [2, 5]


def test_other_structures_are_aliased_and_odd_options_refused():
    model = nn.Sequential(nn.Embedding(20, 6))
    report = sft.convert(model, {"0.weight": sft.Columns([1])})
    assert report.transient == ["0.weight"]
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="max_norm=1.0"):
        sft.convert(nn.Sequential(nn.Embedding(20, 6, max_norm=1.0)), {"0.weight": sft.Rows([1])})
    with pytest.raises(TypeError, match="whole rows, got 'columns'"):
        sft.functional.selective_embedding(
            torch.tensor([0]), torch.zeros(4, 4), torch.zeros(4, 1), sft.Columns([1])
        )
    with pytest.raises(TypeError, match="embedding: expected an nn.Embedding, got Linear"):
        sft.nn.SelectiveEmbedding.from_embedding(nn.Linear(2, 2), sft.Rows([1]))
