"""diffusers' own adapters: a selective one on the attention of a tiny UNet."""

import torch
from helpers import trl_runs

import sparse_ft as sft

trl_runs.make_importable("peft", "diffusers")

from diffusers import UNet2DConditionModel  # noqa: E402

from sparse_ft.peft import SelectiveConfig  # noqa: E402

TARGETS = ["to_q", "to_v"]


def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def denoised(model):
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, 2, 8, 8, generator=generator)
    text = torch.randn(2, 3, 8, generator=generator)
    return model(noise, torch.tensor([3, 7]), text).sample


def train(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = denoised(model).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_add_adapter_trains_as_convert_and_gives_the_base_back():
    model, plain, converted = unet(), unet(), unet()
    names = [f"*{target}.weight" for target in TARGETS]
    plan = sft.select(converted, density=0.3, score="magnitude", targets=names)
    sft.convert(converted, plan)
    config = SelectiveConfig(density=0.3, score="magnitude", target_modules=TARGETS)
    model.add_adapter(config, "style")
    assert model.active_adapters() == ["style"]
    assert train(model) == train(converted)
    with torch.no_grad():
        assert torch.equal(denoised(model), denoised(converted))
        model.disable_adapters()
        assert torch.equal(denoised(model), denoised(plain))
        model.enable_adapters()
        assert torch.equal(denoised(model), denoised(converted))
    model.add_adapter(config, "twin")
    model.set_adapter("style")
    with torch.no_grad():
        assert torch.equal(denoised(model), denoised(converted))
    model.delete_adapters(["style", "twin"])
    with torch.no_grad():
        assert torch.equal(denoised(model), denoised(plain))
