"""Whole convolutional nets: what lean modules keep together, and that nothing else changes."""

import pytest
import torch
from helpers.lean_twins import assert_same_bits, assert_same_every_way, kept, run, twins
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("on_device")


class BasicBlock(nn.Module):
    def __init__(self, into, out, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Identity()
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    def __init__(self, into, out, stride=1):
        super().__init__()
        middle = out // 4
        sizes = [(into, middle, 1, 1, 0), (middle, middle, 3, stride, 1), (middle, out, 1, 1, 0)]
        self.convs = nn.ModuleList(nn.Conv2d(*size, bias=False) for size in sizes)
        self.bns = nn.ModuleList(nn.BatchNorm2d(size[1]) for size in sizes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Identity()
        if stride != 1 or into != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        out = x
        for conv, bn in zip(self.convs[:2], self.bns, strict=False):
            out = self.relu(bn(conv(out)))
        out = self.bns[2](self.convs[2](out))
        out += self.downsample(x)
        return self.relu(out)


def resnet(block):
    """A small ResNet in eval mode: frozen but for its head."""
    stem = [
        nn.Conv2d(3, 16, 7, 2, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    blocks = [block(16, 32), block(32, 32), block(32, 64, 2), block(64, 64)]
    model = nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10)
    )
    return settle(model)


def settle(model):
    """Frozen, in eval mode, with running statistics of a batch."""
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32))
    return model.eval().requires_grad_(False)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32)


def test_conv_relu_conv():
    """82,176 bytes in torch (85,344 with the weights).

    One bit an element of the ReLU with lean modules.
    """
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).requires_grad_(False)
    plain, lean = twins(model)
    x = torch.randn(2, 3, 32, 32)
    weights = 4 * (plain[0].weight.numel() + plain[2].weight.numel())
    assert kept(plain, x) + weights == 85_344
    assert kept(lean, x) == 2 * 8 * 30 * 30 // 8 == 1_800
    assert_same_bits(plain, lean, x)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_resnet_keeps_little(block, images):
    plain, lean = twins(resnet(block))
    for model in (plain, lean):
        model[-1].requires_grad_()
    assert_same_bits(plain, lean, images)
    assert kept(plain, images) > 30 * kept(lean, images)
    assert_same_every_way(plain, lean, images)


def test_a_resnet_of_transformers(images):
    transformers = pytest.importorskip("transformers")
    for layer_type in ("basic", "bottleneck"):
        config = transformers.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[2, 2],
            layer_type=layer_type,
            num_labels=5,
        )
        plain, lean = twins(settle(transformers.ResNetForImageClassification(config)))
        logits = [nn.Module() for _ in range(2)]
        for holder, model in zip(logits, (plain, lean), strict=True):
            holder.model, holder.forward = model, lambda x, model=model: model(x).logits
        assert_same_bits(*logits, images)
        assert kept(plain, images) > 30 * kept(lean, images)


def test_dropout_trains_while_the_norms_are_fixed(images):
    plain, lean = twins(resnet(BasicBlock))
    for model in (plain, lean):
        model[-2].train()
    assert_same_bits(plain, lean, images)


def test_norms_in_training_mode_are_torchs(images):
    plain, lean = twins(resnet(BasicBlock).train().requires_grad_())
    assert_same_bits(plain, lean, images)
    for name, value in plain.state_dict().items():
        assert torch.equal(lean.state_dict()[name], value), name


@pytest.mark.parametrize("structure", ["rows", "columns"])
def test_a_resnet_with_selected_channels(structure, images):
    """Half of the channels of the last block's convolutions.

    Everything before it is only passed through.
    """
    model = resnet(BasicBlock)
    pick = (
        sft.Rows(range(0, 64, 2))
        if structure == "rows"
        else sft.Columns([c for c in range(576) if c // 9 % 2])
    )
    sft.convert(model, {"7.conv1.weight": pick, "7.conv2.weight": pick, "11.weight": "all"})
    plain, lean = twins(model)
    wanted, got = run(plain, images), run(lean, images)
    assert torch.equal(wanted[0], got[0]) and torch.equal(wanted[1], got[1])
    assert len(got[2]) == 3
    for name, gradient in wanted[2].items():
        torch.testing.assert_close(got[2][name], gradient, rtol=1e-4, atol=1e-5)
    assert kept(plain, images) > (8 if structure == "rows" else 12) * kept(lean, images)
    sft.revert(lean)
    assert torch.equal(lean(images), plain(images))


def test_compile(images):
    model = resnet(BasicBlock)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    plain, lean = twins(model)
    wanted, got = run(plain, images), run(torch.compile(lean, fullgraph=True), images)
    for a, b in zip(wanted[:2], got[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
