"""Models in which a selection would silently train wrongly.

Convert refuses them by name and changes nothing.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

ROWS = sft.Rows([1])


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self, layer):
        super().__init__()
        self.a = self.b = layer


class Scaled(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 6))
        self.scale = nn.Parameter(torch.ones(6))


def two_views_of_one_memory():
    a, b = nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight = nn.Parameter(a.weight.data)
    return nn.Sequential(a, b)


@pytest.mark.parametrize(
    "make, plan, message",
    [
        (
            lambda: Twice(nn.Linear(6, 6)),
            {"a.weight": ROWS, "b.weight": ROWS},
            "'a.weight' and 'b.weight' are one parameter",
        ),
        (
            lambda: Twice(nn.Conv1d(6, 6, 1)),
            {"a.weight": "all", "b.weight": ROWS},
            "'a.weight' and 'b.weight' are one",
        ),
        (
            two_views_of_one_memory,
            {"0.weight": ROWS},
            r"'0.weight' is one parameter with 1.weight \(tied\)",
        ),
        (
            lambda: nn.ModuleList([Scaled()]),
            {"0.scale": sft.Entries([1])},
            "'0.scale' belongs to a Scaled",
        ),
        (
            lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=1.0)),
            {"0.weight": sft.Entries([1])},
            "max_norm=1.0",
        ),
        (
            lambda: nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True)),
            {"0.weight": ROWS},
            "sparse=True",
        ),
    ],
)
def test_refused_by_name(make, plan, message):
    model = make()
    flags, classes = (
        [p.requires_grad for p in model.parameters()],
        [type(m) for m in model.modules()],
    )
    with pytest.raises(ValueError, match=message):
        sft.convert(model, plan)
    assert [p.requires_grad for p in model.parameters()] == flags and [
        type(m) for m in model.modules()
    ] == classes


def test_one_parameter_may_be_named_twice_to_train_whole():
    model = Twice(nn.Linear(6, 6))
    assert sft.convert(model, {"a.weight": "all", "b.weight": "all"}).trainable == 36


def test_convert_under_inference_mode():
    model = nn.Sequential(nn.Linear(6, 6))
    with torch.inference_mode(), pytest.raises(ValueError, match="0.weight: .*inference_mode"):
        sft.convert(model, {"0.weight": ROWS})


def test_convert_after_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(6, 6))
        with pytest.raises(ValueError, match="model: DistributedDataParallel wraps it already"):
            sft.convert(model, {"module.weight": ROWS})
    finally:
        torch.distributed.destroy_process_group()


def test_a_parametrization_is_no_container():
    model, x = nn.Sequential(weight_norm(nn.Linear(6, 5))), torch.randn(3, 6)
    dense, name = copy.deepcopy(model), "parametrizations.weight.original1"
    sft.convert(model, {f"0.{name}": ROWS})
    for net in (model, dense):
        net(x).square().sum().backward()
    values = model.get_submodule("0.parametrizations.weight.original1_selected").values
    assert torch.equal(values.grad, dense[0].get_parameter(name).grad[[1]])
