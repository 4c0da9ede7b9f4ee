"""Layers of convnets: BatchNorm and ReLU in place on the convolution's output, wherever nobody can
tell.
"""

import pytest
import torch
from helpers.lean_twins import assert_same_bits, assert_same_every_way, kept, run, twins
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_ft as sft
from sparse_ft import ops
from sparse_ft.memory.live import Live
from sparse_ft.memory.watching import Watching

pytest.importorskip("transformers")
from transformers.models.regnet.modeling_regnet import RegNetConvLayer  # noqa: E402
from transformers.models.resnet.modeling_resnet import ResNetConvLayer, ResNetShortCut  # noqa: E402
from transformers.models.rt_detr.modeling_rt_detr import RTDetrConfig, RTDetrConvNormLayer  # noqa: E402

pytestmark = pytest.mark.usefixtures("on_device")

LAYERS = {
    "ReLU": lambda: ResNetConvLayer(5, 8),
    "no activation": lambda: ResNetConvLayer(5, 8, activation=None),
    "SiLU": lambda: ResNetConvLayer(5, 8, activation="silu"),
    "bias": lambda: ResNetConvLayer(5, 8, bias=True),
    "shortcut": lambda: ResNetShortCut(5, 8),
    "RegNet": lambda: RegNetConvLayer(5, 8),
    "RT-DETR": lambda: RTDetrConvNormLayer(RTDetrConfig(), 5, 8, 3, 1, activation="relu"),
}


def settle(model, dtype=torch.float32):
    """Frozen, in eval mode, with statistics and parameters far from 0 and 1, weights of either
    sign.
    """
    for name, tensor in model.requires_grad_(False).state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.copy_(
                torch.rand_like(tensor) + 0.1 if name.endswith("var") else torch.randn_like(tensor)
            )
    return model.eval().to(dtype)


@pytest.fixture
def images():
    return torch.randn(2, 5, 7, 9)


@pytest.fixture
def fused(monkeypatch):
    """What `relu` was in the calls of the op, one after another."""
    calls, op = [], ops.batch_norm_
    monkeypatch.setattr(ops, "batch_norm_", lambda *args: calls.append(args[-1]) or op(*args))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_same_bits(layer, dtype, images, fused):
    plain, lean = twins(settle(LAYERS[layer](), dtype))
    for x in (images.to(dtype), images.to(dtype, memory_format=torch.channels_last)):
        wanted, got = run(plain, x), run(lean, x)
        assert torch.equal(wanted[0], got[0]) and wanted[0].stride() == got[0].stride()
        torch.testing.assert_close(
            got[1], wanted[1], rtol=2e-15 if dtype == torch.float64 else 0, atol=1e-15
        )
    assert fused == 2 * [layer not in ("no activation", "SiLU", "shortcut")]


@pytest.mark.parametrize("layer, bits", [("ReLU", 1), ("no activation", 0), ("shortcut", 0)])
def test_keeps_one_bit_an_element_or_nothing(layer, bits, images):
    plain, lean = twins(settle(LAYERS[layer]()))
    assert kept(lean, images) == -(-bits * plain(images).numel() // 8)


@pytest.mark.parametrize("layer", ["ReLU", "no activation", "shortcut"])
def test_a_forward_takes_one_tensor_of_the_output_s_size(layer, images):
    sizes = []
    for model in twins(settle(LAYERS[layer]())):
        with Live() as live, Watching(model):  # which is not to change what it counts
            output = model(images.requires_grad_())
        sizes.append(live.peak / output.nbytes)
    assert sizes[0] >= 2 and sizes[1] <= 1.04, sizes


class Keeps:
    """A hook that keeps what it sees."""

    def __init__(self):
        self.seen = []

    def __call__(self, module, args, output):
        self.seen.append(output)


@pytest.mark.parametrize("part", ["convolution", "normalization", "activation", "all"])
def test_hooks_see_what_they_would_see(part, images, fused):
    seen = []
    for model in twins(settle(ResNetConvLayer(5, 8))):
        hook = Keeps()
        handle = (
            register_module_forward_hook(hook)
            if part == "all"
            else getattr(model, part).register_forward_hook(hook)
        )
        result = run(model, images)
        handle.remove()
        seen.append([*hook.seen, *result[:2]])
    assert len(seen[0]) == len(seen[1]) == (6 if part == "all" else 3)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert fused == [False] * (part == "activation")  # BatchNorm alone may be in place there


class Recording(TorchDispatchMode):
    """Keeps what convolutions return."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default):
            self.seen.append(out)
        return out


def test_a_mode_keeps_what_it_saw(images, fused):
    plain, lean = twins(settle(ResNetConvLayer(5, 8)))
    with Recording() as recording:
        run(lean, images)
    assert torch.equal(recording.seen[0], plain.convolution(images)) and not fused


def test_a_default_device_keeps_nothing(images, fused):
    plain, lean = twins(settle(ResNetConvLayer(5, 8)))
    with images.device:
        got = run(lean, images)
    assert torch.equal(run(plain, images)[0], got[0]) and fused == [True]


def test_a_forward_of_the_users_own_keeps_its_output(images, fused):
    plain, lean = twins(settle(ResNetConvLayer(5, 8)))
    kept, forward = [], lean.convolution.forward
    lean.convolution.forward = lambda x: kept.append(forward(x)) or kept[-1]
    run(lean, images)
    assert torch.equal(kept[0], plain.convolution(images)) and not fused


def test_traces_see_modules(images, fused):
    _, lean = twins(settle(ResNetConvLayer(5, 8)))
    traced = torch.jit.trace(lean, images.requires_grad_(), check_trace=False)
    symbolic = torch.fx.symbolic_trace(nn.Sequential(lean))
    assert torch.equal(traced(images), lean(images)) and torch.equal(symbolic(images), lean(images))


@pytest.mark.parametrize("part", ["convolution", "normalization", "activation"])
@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_backward_hooks_run(part, register, images):
    seen = []
    for model in twins(settle(ResNetConvLayer(5, 8))):
        grads = []
        getattr(getattr(model, part), register)(
            lambda module, *of, grads=grads: grads.extend(t for g in of for t in g)
        )
        run(model, images)
        seen.append(grads)
    assert len(seen[0]) and all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


CHANGES = {
    "training": lambda m: m.train(),
    "the norm's weight trains": lambda m: m.normalization.weight.requires_grad_(),
    "the norm's bias trains": lambda m: m.normalization.bias.requires_grad_(),
    "no statistics": lambda m: (
        setattr(m.normalization, "running_mean", None)
        or setattr(m.normalization, "running_var", None)
    ),
    "another norm": lambda m: setattr(m, "normalization", nn.GroupNorm(2, 8).requires_grad_(False)),
    "another convolution": lambda m: setattr(
        m, "convolution", nn.Sequential(m.convolution, nn.Sigmoid())
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_anything_else_goes_module_by_module(change, images, fused):
    plain, lean = twins(settle(ResNetConvLayer(5, 8)))
    CHANGES[change](plain)
    CHANGES[change](lean)
    wanted, got = run(plain, images), run(lean, images)
    assert torch.equal(wanted[0], got[0]) and torch.equal(wanted[1], got[1]) and not fused
    for name, gradient in wanted[2].items():
        torch.testing.assert_close(got[2][name], gradient)
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), lean.state_dict().values(), strict=True)
    )


def test_without_a_gradient_of_its_input_it_is_torchs(images, fused):
    plain, lean = twins(settle(ResNetConvLayer(5, 8)))
    assert torch.equal(plain(images), lean(images)) and not lean(images).requires_grad
    with torch.no_grad():
        assert torch.equal(plain(images), lean(images.clone().requires_grad_()))
    assert not fused


def test_a_convolution_with_selected_channels(images, fused):
    model = nn.Sequential(settle(ResNetConvLayer(5, 8)))
    sft.convert(model, {"0.convolution.weight": sft.Rows([1, 3])})
    plain, lean = twins(model)
    wanted, got = run(plain, images), run(lean, images)
    assert torch.equal(wanted[0], got[0]) and torch.equal(wanted[1], got[1]) and fused == [True]
    for name, gradient in wanted[2].items():
        torch.testing.assert_close(got[2][name], gradient, rtol=1e-4, atol=1e-5)
    assert len(got[2]) == 1


def test_a_gradient_of_another_layout(images):
    plain, lean = twins(settle(ResNetConvLayer(5, 8)))
    for first, second in ((0, 1), (1, 0)):
        form = torch.contiguous_format, torch.channels_last
        results = []
        for model in (plain, lean):
            x = images.contiguous(memory_format=form[first]).requires_grad_()
            output = model(x)
            grad = torch.randn(
                output.shape, generator=torch.Generator(x.device).manual_seed(0)
            ).contiguous(memory_format=form[second])
            results.append(torch.autograd.grad(output, x, grad)[0])
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_nan_stays(images):
    images[0, 0, 3, 3] = float("nan")
    assert_same_bits(*twins(settle(ResNetConvLayer(5, 8))), images)


def test_statistics_that_change_before_backward_are_reported(images):
    _, lean = twins(settle(ResNetConvLayer(5, 8)))
    output = lean(images.requires_grad_())
    lean.normalization.running_var.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_every_way(images):
    for layer in ("ReLU", "no activation"):
        assert_same_every_way(*twins(settle(LAYERS[layer]())), images)


def test_gradcheck(images):
    _, lean = twins(settle(ResNetConvLayer(2, 3), torch.float64))
    assert torch.autograd.gradcheck(
        lean, torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    )


def test_compile(images):
    plain, lean = twins(settle(ResNetConvLayer(5, 8)))
    for a, b in zip(
        run(plain, images)[:2], run(torch.compile(lean, fullgraph=True), images)[:2], strict=True
    ):
        torch.testing.assert_close(a, b)
