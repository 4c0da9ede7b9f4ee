"""Parameters in a form of somebody else's.

Refused by name, with the way out, and everything is as it was.
"""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import sparse_ft as sft

X = torch.linspace(-1, 1, 16).view(2, 8)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.LayerNorm(4))


PLAN = {"0.weight": sft.Rows([0]), "2.weight": sft.Columns([1]), "3.weight": sft.Entries([1])}


def refused(model, plan, message, error=ValueError):
    parameters = dict(model.named_parameters())
    flags, classes = (
        [p.requires_grad for p in parameters.values()],
        [type(m) for m in model.modules()],
    )
    with pytest.raises(error, match=message):
        sft.convert(model, plan)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [type(m) for m in model.modules()] == classes
    assert all(a is b for a, b in zip(parameters.values(), model.parameters()))


@pytest.fixture
def mesh(tmp_path):
    if not distributed.is_gloo_available():
        pytest.skip("needs gloo")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def fsdp2(model, mesh):
    fully_shard(model, mesh=mesh)


def fsdp2_layers(model, mesh):
    for layer in (*model, model):
        fully_shard(layer, mesh=mesh)


def tensor_parallel(model, mesh):
    parallelize_module(model, mesh, {"0": ColwiseParallel()})


def distributed_tensors(model, mesh):
    distribute_module(model, mesh)


SHARDED = [fsdp2, fsdp2_layers, tensor_parallel, distributed_tensors]


@pytest.mark.parametrize("shard", [fsdp2, fsdp2_layers])
def test_sharded_before(shard, mesh):
    model = net()
    shard(model, mesh)
    refused(model, PLAN, r"model: .* sharded by FSDP2 \(fully_shard\) already, .* convert first")


def test_a_sum_that_was_not_taken(mesh):
    model = net()
    pending = DTensor.from_local(torch.ones(6, 8), mesh, [Partial()])
    model[0].weight = nn.Parameter(pending)
    refused(model, PLAN, "0.weight': a DTensor in the placements .*Partial.* redistribute it first")


def test_choosing_in_what_tensor_parallel_has_cut(mesh):
    model = net()
    tensor_parallel(model, mesh)
    with pytest.raises(ValueError, match="targets: '0.weight': a DTensor, .* choose before"):
        sft.select(model, density=0.1, score="magnitude", targets="0.weight")


@pytest.mark.parametrize(
    "what", [sft.save_delta, sft.patches, sft.reselect], ids=["save_delta", "patches", "reselect"]
)
def test_what_needs_whole_weights_says_that_tensor_parallel_has_cut_them(what, mesh, tmp_path):
    model = net()
    tensor_parallel(model, mesh)
    sft.convert(model, PLAN)
    more = {sft.save_delta: [tmp_path / "delta"], sft.patches: []}
    more[sft.reselect] = [sft.SelectiveAdamW(model.parameters()), PLAN]
    with pytest.raises((RuntimeError, ValueError), match="0.weight.*tensor parallel.*sft.revert"):
        what(model, *more[what])


def test_origins_of_what_tensor_parallel_has_cut(mesh):
    model = net()
    tensor_parallel(model, mesh)
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="0.weight: origin=True is not supported"):
        sft.convert(model, PLAN, origin=True)
    assert [type(m) for m in model.modules()] == before


@pytest.mark.parametrize("shard", [tensor_parallel, distributed_tensors])
def test_tensor_parallel_after(shard, mesh):
    """At the wrap or at the first forward."""
    model = net()
    sft.convert(model, PLAN)
    with pytest.raises(
        RuntimeError, match=r"tensor parallel .* comes before sft.convert|sft.revert\(model\) first"
    ):
        shard(model, mesh)
        model(X)


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1(use_orig_params, mesh):
    wrap = dict(use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    refused(
        FullyShardedDataParallel(net(), **wrap),
        {"0.weight": sft.Rows([0])},
        "model: it is a FullyShardedDataParallel",
    )
    inside = nn.Sequential(FullyShardedDataParallel(net(), **wrap))
    refused(inside, {"0.0.weight": sft.Rows([0])}, "model: its '0' is a FullyShardedDataParallel")
    if use_orig_params:
        model = net()
        sft.convert(model, PLAN)
        with pytest.raises(RuntimeError, match=r"0.weight: .*sft.revert\(model\) first"):
            FullyShardedDataParallel(model, **wrap)


def with_weight(make):
    model = net()
    model[0].weight = nn.Parameter(make(model[0].weight.detach()), requires_grad=False)
    return model


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_codes(dtype):
    refused(
        with_weight(lambda w: w.to(dtype)),
        PLAN,
        f"0.weight: {dtype}, so it is quantised .* without quantisation",
        TypeError,
    )


class Codes(torch.Tensor):
    """As torchao's: says that it is float32, and is 8-bit codes and a scale."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return Codes(args[0].codes, args[0].scale)
        plain = [a.codes * a.scale if isinstance(a, Codes) else a for a in args]
        return function(*plain, **(kwargs or {}))


class Packed(nn.Parameter):
    """As bitsandbytes': becomes codes when it is moved."""

    def to(self, *arguments, **keywords):
        return torch.zeros(1, dtype=torch.uint8)


class Tagged(nn.Parameter):
    """A user's own class, which only knows more."""

    note = "mine"


def test_classes_of_their_own():
    model = net()
    model[0].weight = nn.Parameter(
        Codes((model[0].weight.detach() * 64).to(torch.int8), 1 / 64), requires_grad=False
    )
    refused(model, PLAN, "0.weight: a Codes, which computes in its own way")
    model = net()
    model[0].weight = Packed(model[0].weight.detach())
    refused(model, PLAN, "0.weight: a Packed, which computes in its own way")
    model = net()
    model[0].weight = Tagged(model[0].weight.detach())
    sft.convert(model, PLAN)


def test_quantised_by_torch():
    with pytest.warns(Warning):
        model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)
    refused(
        model,
        {"0.weight": sft.Rows([0])},
        "'0.weight' is no parameter of its Linear.*quantised",
        KeyError,
    )


def test_an_embedding_of_torchao():
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Embedding(64, 64))
    quantization.quantize_(
        model, quantization.IntxWeightOnlyConfig(), lambda module, _: module is model[0]
    )
    refused(
        model, {"0.weight": sft.Rows([0])}, "0.weight: .*quantised.*Quantiser of yours", ValueError
    )


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    for name in ("0.weight", "1.weight"):
        with pytest.raises(
            ValueError,
            match="model: '0.weight': a lazy module's.* run the model on one batch first",
        ):
            sft.convert(model, {name: sft.Rows([0])})
    with pytest.raises(ValueError, match="targets: '0.weight': a lazy module's"):
        sft.select(model, density=0.5, score="random", targets="*.weight")
    model(X)
    sft.convert(model, {"0.weight": sft.Rows([0])})


@pytest.fixture
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("name", PLAN)
def test_swapped_parameters(name, swapping):
    """Casts and loads under `set_swap_module_params_on_conversion(True)` keep what was trained, and
    train on.
    """
    model = net()
    sft.convert(model, {name: PLAN[name]})
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        loss = model(X.to(model[0].bias.dtype)).square().sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    first, trained = step(), copy.deepcopy(model.state_dict())
    model.double()
    model.float()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[key]), key
    step()
    model.load_state_dict(trained)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[key]), key
    assert step() < first and step() < first


class Scale(nn.Module):
    """Reads its parameter in its own way, and torch.fx goes inside."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.scale


@pytest.mark.parametrize(
    "make, plan",
    [
        (net, PLAN),
        (lambda: nn.Sequential(nn.Embedding(9, 4)), {"0.weight": sft.Rows([1])}),
        (lambda: nn.Sequential(Scale()), {"0.scale": sft.Entries([1])}),
    ],
    ids=["linear", "embedding", "alias"],
)
def test_symbolic_tracing(make, plan):
    model = make()
    sft.convert(model, plan)
    with pytest.raises(
        RuntimeError,
        match="0.(weight|scale): torch.fx.symbolic_trace cannot trace .* torch.compile",
    ):
        torch.fx.symbolic_trace(model)
    sft.revert(model)
    torch.fx.symbolic_trace(model)


@pytest.mark.parametrize("name", PLAN)
def test_batched_gradients_are_right(name):
    """`is_grads_batched` and a vmapped backward work.

    Refused nowhere, they must equal one backward each.
    """
    model = net()
    sft.convert(model, {name: PLAN[name]})
    values = [p for p in model.parameters() if p.requires_grad]
    y = model(X)
    directions = torch.eye(y.numel()).view(-1, *y.shape)

    def of(direction, **keywords):
        return torch.autograd.grad(y, values, direction, retain_graph=True, **keywords)[0]

    expected = torch.stack([of(direction) for direction in directions])
    torch.testing.assert_close(of(directions, is_grads_batched=True), expected)
    torch.testing.assert_close(torch.func.vmap(of)(directions), expected)
