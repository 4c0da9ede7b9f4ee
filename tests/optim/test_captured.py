"""A step that reads nothing back to the host, and the CUDA graph that can therefore hold it."""

import copy
import warnings

import pytest
import torch
from helpers.small_net import net
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import sparse_ft as sft

PLAN = {
    "0.weight": sft.Rows([1, 5]),
    "1.weight": sft.Columns([0, 3, 4]),
    "2.weight": sft.Blocks([[0, 1], [1, 0]], (4, 4)),
    "3.weight": sft.Entries([0, 9, 63]),
    "3.bias": "all",
}


def linear_model():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    sft.convert(model, PLAN)
    return model


@pytest.fixture
def pretended(monkeypatch):
    """Moves a model to a GPU whose tensors have no data, and gives it gradients.

    Returns the mode in which a read raises.
    """
    # The other answer is for forwards, and is read from the device.
    monkeypatch.setattr(
        sft.selection.Selection, "restrict", lambda self, dim, size: (None, self.layout)
    )

    def move(model):
        selective = [module for module in model.modules() if isinstance(module, sft.nn.Selected)]
        for module in selective:
            module._sparse_ft_state.selection = copy.deepcopy(module.selection)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            for module in selective:  # without a copy of data: torch may have no CUDA here
                object.__setattr__(
                    module.selection,
                    "index",
                    torch.empty_like(module.selection.index, device="cuda"),
                )
            model.to_empty(device="cuda")
            for p in model.parameters():
                p.grad = torch.ones_like(p) if p.requires_grad else None
        return mode

    with warnings.catch_warnings():
        # It is compared, not followed.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield move


def lr_on(device, value=1e-2):
    return torch.full((), value, dtype=torch.float32, device=device)


OPTIONS = [
    {},
    {"skip_nonfinite": True},
    {"maximize": True},
    {"no_decay": "*.bias"},
    {"in_backward": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("make", [linear_model, net])
def test_a_step_reads_nothing_back(pretended, make, tensor_lr, options):
    model = make()
    with pretended(model):
        optimizer = sft.SelectiveAdamW(
            model.named_parameters(), lr_on("cuda") if tensor_lr else 1e-2, **options
        )
        for _ in range(2):
            if "in_backward" in options:
                for p in optimizer.param_groups[0]["params"]:
                    p.grad = torch.ones_like(p)
                    optimizer._backward._step(p)  # torch has no backward here
            optimizer.step()
    assert optimizer.state and all(
        state["step"].device.type == "cuda" for state in optimizer.state.values()
    )


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_groups_that_go_apart_and_a_grad_scaler_read_nothing_back(pretended, skip_nonfinite):
    model = linear_model()
    with pretended(model):
        params = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": params[:2], "lr": lr_on("cuda")},
            {"params": params[2:4], "maximize": True},
            {"params": params[4:]},
        ]
        optimizer = sft.SelectiveAdamW(groups, skip_nonfinite=skip_nonfinite)
        optimizer.step()
        optimizer.grad_scale, optimizer.found_inf = lr_on("cuda", 4.0), lr_on("cuda", 0.0)
        optimizer.step()
    assert len(optimizer.state) == 5


@pytest.mark.parametrize(
    "read", [lambda o: o.param_groups[0]["lr"].item(), lambda o: o.skipped_steps]
)
def test_a_step_that_reads_is_found_out(pretended, read):
    model = linear_model()
    with pretended(model):
        optimizer = sft.SelectiveAdamW(model.parameters(), lr_on("cuda"), skip_nonfinite=True)
        optimizer.register_step_post_hook(lambda optimizer, *_: read(optimizer))
        with pytest.raises(DataDependentOutputException):
            optimizer.step()


def captured(model, optimizer, x):
    """One forward, backward and step in a CUDA graph, after a warm-up that leaves model and
    optimiser as they were.
    """

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(before[0][name])
        for state in optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
    return graph


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a graph of a GPU's")
def test_cuda_graph_follows_lr_and_skips():
    """A replay is the eager step bit for bit.

    With each lr of a schedule, and where a gradient is not finite.
    """
    torch.manual_seed(0)
    eager = linear_model().cuda()
    replayed = copy.deepcopy(eager)
    lrs = [lr_on("cuda") for _ in range(2)]
    optimizers = [
        sft.SelectiveAdamW(m.parameters(), lr, skip_nonfinite=True)
        for m, lr in zip((eager, replayed), lrs)
    ]
    x = torch.zeros(16, 8, device="cuda")
    graph = captured(replayed, optimizers[1], x)
    skipped = optimizers[1].skipped_steps
    for i, lr in enumerate((1e-2, 3e-3, 1e-1, 1e-3)):
        x.copy_(torch.full_like(x, float("inf")) if i == 2 else torch.randn_like(x))
        for tensor in lrs:
            tensor.fill_(lr)
        optimizers[0].zero_grad()
        eager(x).square().mean().backward()
        optimizers[0].step()
        graph.replay()
        for a, b in zip(eager.parameters(), replayed.parameters(), strict=True):
            assert torch.equal(a, b), (i, a.shape)
    assert optimizers[0].skipped_steps == optimizers[1].skipped_steps - skipped == 1
    moments = [[state["exp_avg"] for state in optimizer.state.values()] for optimizer in optimizers]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
