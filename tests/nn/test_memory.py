"""What is allocated and what is kept.

Never a tensor of the weight's size, and for backward only what some entry needs.
"""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sparse_ft as sft
from sparse_ft import rebuild
from sparse_ft.known import Known
from sparse_ft.memory.watching import Watching

pytestmark = pytest.mark.usefixtures("made_on_device")

OUT, IN, TOKENS = 96, 160, 3
KINDS = {
    "rows": sft.Rows([1, 50]),
    "columns": sft.Columns([0, 90, 159]),
    "blocks": sft.Blocks([[0, 1], [5, 9]], 16),
    "entries": sft.Entries([0, 400, 401, 15000]),
}


class Largest(TorchDispatchMode):
    """The most elements in one new storage.

    Op outputs that are not a view of, or the same as, an input.
    """

    def __init__(self):
        super().__init__()
        self.elements, self.op = 0, None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                elements = t.untyped_storage().nbytes() // t.element_size()
                if elements > self.elements:
                    self.elements, self.op = elements, func
        return out


def train_once(module, x, optimizer):
    out = module(x)
    out.backward(torch.ones_like(out))
    optimizer.step()
    module.weight
    module.state_dict()


def kept_bytes(forward, *modules):
    """Bytes that autograd keeps for a call, what `modules` hold left out, and the call's output."""
    watching = Watching(nn.ModuleList(modules))
    with watching:
        out = forward()
    return watching.ledger(out).total, out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "make",
    [lambda p: sft.SelectiveAdamW(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, fused=True)],
    ids=["ours", "fused"],
)
def test_linear_never_allocates_a_weight(kind, make):
    module = sft.nn.SelectiveLinear.from_linear(nn.Linear(IN, OUT), KINDS[kind])
    x, optimizer = torch.randn(TOKENS, IN, requires_grad=True), make([module.values])
    with Largest() as largest:
        for _ in range(2):
            train_once(module, x, optimizer)
    assert largest.elements < OUT * IN // 4, largest.op


def test_the_instrument_sees_a_dense_layer():
    linear, x = nn.Linear(IN, OUT), torch.randn(TOKENS, IN)
    with Largest() as largest:
        linear(x).sum().backward()
    assert largest.elements >= OUT * IN


@pytest.mark.parametrize("kind", KINDS)
def test_conv1d_never_allocates_a_weight(kind):
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(Conv1D(IN, OUT))  # weight [OUT, IN]: OUT inputs
    sft.convert(model, {"0.weight": KINDS[kind]})
    x = torch.randn(TOKENS, OUT, requires_grad=True)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1)
    with Largest() as largest:
        train_once(model[0], x, optimizer)
    assert largest.elements < OUT * IN // 4, largest.op


def test_embedding_never_allocates_a_table():
    module = sft.nn.SelectiveEmbedding.from_embedding(nn.Embedding(500, 16), sft.Rows([3, 40, 499]))
    ids, optimizer = (
        torch.tensor([[3, 4, 499], [40, 3, 0]]),
        sft.SelectiveAdamW([module.values], lr=0.1),
    )
    with Largest() as largest:
        train_once(module, ids, optimizer)
    assert largest.elements < 500 * 16 // 4, largest.op


def test_bytes_kept_for_one_linear():
    linear, x = nn.Linear(1024, 1024).requires_grad_(False), torch.randn(4, 256, 1024)
    size = x.numel() * 4
    make = lambda selection: sft.nn.SelectiveLinear.from_linear(nn.Linear(1024, 1024), selection)  # noqa: E731
    columns = make(sft.Columns(torch.arange(0, 1024, 32)))
    assert kept_bytes(lambda: linear(x), linear)[0] == 0
    assert kept_bytes(lambda: columns(x), columns)[0] <= 0.032 * size
    blocks, rows = make(sft.Blocks([[0, 0], [3, 0], [5, 7]], 16)), make(sft.Rows([0]))
    assert kept_bytes(lambda: blocks(x), blocks)[0] <= 32 / 1024 * size
    assert kept_bytes(lambda: rows(x), rows)[0] == size
    columns.values.requires_grad_(False)
    columns.bias.requires_grad_(False)
    assert kept_bytes(lambda: columns(x), columns)[0] == 0


def test_one_copy_for_all_who_read_the_same_columns(device):
    x = torch.randn(4, 64, 256)
    q, k, v = (
        sft.nn.SelectiveLinear.from_linear(nn.Linear(256, 256), sft.Columns([1, 2, 200]))
        for _ in range(3)
    )
    one, _ = kept_bytes(lambda: q(x), q)
    three, out = kept_bytes(lambda: (q(x) + k(x) + v(x)).sum(), q, k, v)
    apart = 3 if device.type == "cpu" else 4  # each token starts on 16 bytes
    assert one == three == 4 * 64 * apart * 4
    out.backward()
    x.add_(1)  # another version of the same tensor: another copy
    again, out = kept_bytes(lambda: q(x).sum(), q)
    q.values.grad = None
    out.backward()
    torch.testing.assert_close(
        q.values.grad, (torch.ones(256, 256) @ x.reshape(256, 256))[:, [1, 2, 200]]
    )


def test_the_shared_copy_dies_with_its_graph(monkeypatch):
    monkeypatch.setattr(rebuild, "_copies", Known())  # of other tests' graphs none
    x = torch.randn(4, 256)
    module = sft.nn.SelectiveLinear.from_linear(nn.Linear(256, 8), sft.Columns([1, 2]))
    out = module(x)
    assert [tuple(copy.shape) for copy in rebuild._copies.alive()] == [(4, 2)]
    del out
    assert not rebuild._copies.alive()
    watched = weakref.ref(x)
    del x
    assert watched() is None


def test_autocast_keeps_no_copy_of_a_weight(device):
    x = torch.randn(4, 64, 256, requires_grad=True)
    for selection in (sft.Rows([0]), sft.Columns([0, 8]), sft.Entries([5])):
        module = sft.nn.SelectiveLinear.from_linear(nn.Linear(256, 256), selection)

        def forward(module=module):
            with torch.autocast(device.type, torch.bfloat16):
                return module(x)

        size, out = kept_bytes(forward, module)
        assert size <= x.numel() * 4
        out.sum().backward()
