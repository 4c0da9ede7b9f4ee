"""Small models of many architectures of transformers and torchvision, beside those of
`helpers.architectures`.

Each is a function that returns (model, inputs): random weights, everything there is, one or two
layers of it.
"""

import torch
import transformers
from helpers import architectures
from helpers.architectures import BACKWARDS, PICTURE, TOKENS
from helpers.devices import on
from torch import nn
from torchvision import models as vision

WIDTH, VOCABULARY = 16, 20
# What most configurations call the same; each ignores what it does not know.
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
ENCODER_DECODER = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "decoder_start_token_id": 1,
}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32)


def of_transformers(config: str, model: str, inputs: dict, **settings) -> callable:
    """As `architectures.of_transformers`, of `SMALL` sizes; what is None is left to the class."""
    given = {name: value for name, value in {**SMALL, **settings}.items() if value is not None}
    return architectures.of_transformers(config, model, inputs, **given)


def decoder(family: str, **settings) -> callable:
    return of_transformers(f"{family}Config", f"{family}ForCausalLM", TOKENS, **settings)


def encoder(family: str, task: str = "ForSequenceClassification", **settings) -> callable:
    return of_transformers(f"{family}Config", f"{family}{task}", TOKENS, **settings)


def two_towers(family: str) -> callable:
    """A text and a picture model that meet in their last products."""

    def make():
        small = {
            name: value
            for name, value in SMALL.items()
            if name not in ("head_dim", "num_key_value_heads")
        }
        picture = {**small, "image_size": 8, "patch_size": 4}
        config = getattr(transformers, f"{family}Config")(
            text_config=small, vision_config=picture, projection_dim=WIDTH
        )
        return getattr(transformers, f"{family}Model")(config), {**TOKENS, "pixel_values": PICTURE}

    return make


def sequence_to_sequence(family: str, **settings) -> callable:
    settings = {**ENCODER_DECODER, **settings}
    model, inputs = f"{family}ForConditionalGeneration", {**TOKENS, **BACKWARDS}
    return of_transformers(f"{family}Config", model, inputs, **settings)


def of_pictures(
    family: str, task: str = "ForImageClassification", size: int = 8, **settings
) -> callable:
    picture = {"pixel_values": PICTURE if size == 8 else IMAGES}
    return of_transformers(
        f"{family}Config", f"{family}{task}", picture, image_size=size, patch_size=4, **settings
    )


def of_torchvision(make: callable, inputs: torch.Tensor = IMAGES) -> callable:
    return lambda: (make(), [inputs])


def vgg() -> nn.Module:
    model = vision.vgg.VGG(vision.vgg.make_layers([8, "M", 8, "M"], batch_norm=True), num_classes=5)
    model.avgpool, model.classifier = (
        nn.AdaptiveAvgPool2d(2),
        nn.Sequential(nn.Linear(32, 12), nn.ReLU(True), nn.Linear(12, 5)),
    )
    return model


def mobilenet_v3() -> nn.Module:
    def bottleneck(*arguments):
        return vision.mobilenetv3.InvertedResidualConfig(*arguments, 1, 1)

    settings = [bottleneck(8, 3, 16, 8, True, "RE", 2), bottleneck(8, 5, 16, 16, True, "HS", 1)]
    return vision.mobilenetv3.MobileNetV3(settings, 24, num_classes=5, dropout=0.0)


def efficientnet() -> nn.Module:
    settings = [
        vision.efficientnet.FusedMBConvConfig(2, 3, 2, 8, 8, 1),
        vision.efficientnet.MBConvConfig(2, 3, 2, 8, 16, 1, 1.0, 1.0),
    ]
    return vision.efficientnet.EfficientNet(
        settings, dropout=0.0, stochastic_depth_prob=0.2, num_classes=5, last_channel=24
    )


def convnext() -> nn.Module:
    block = vision.convnext.CNBlockConfig
    return vision.convnext.ConvNeXt(
        [block(8, 16, 1), block(16, None, 1)], stochastic_depth_prob=0.1, num_classes=5
    )


def regnet() -> nn.Module:
    parameters = vision.regnet.BlockParams([1, 1], [8, 16], [4, 8], [1.0, 1.0], [2, 2], 0.25)
    return vision.regnet.RegNet(parameters, num_classes=5, stem_width=8)


def maxvit() -> nn.Module:
    return vision.maxvit.MaxVit(
        (32, 32), 8, 4, [8, 16], [1, 1], head_dim=4, stochastic_depth_prob=0.0, num_classes=5
    )


def fully_convolutional() -> nn.Module:
    backbone = nn.ModuleDict({"out": nn.Conv2d(3, 8, 3)})
    return vision.segmentation.FCN(Features(backbone), vision.segmentation.fcn.FCNHead(8, 4))


class Features(nn.Module):
    """A backbone as torchvision's segmentation wants it."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return {name: layer(x) for name, layer in self.layers.items()}


resnet, densenet = vision.resnet, vision.densenet
TRANSFORMERS = {
    "Mistral": decoder("Mistral"),
    "Gemma": decoder("Gemma"),
    "Gemma 2": decoder("Gemma2", query_pre_attn_scalar=8, sliding_window=4),
    "Gemma 3": of_transformers(
        "Gemma3TextConfig", "Gemma3ForCausalLM", TOKENS, query_pre_attn_scalar=8
    ),
    "Qwen2": decoder("Qwen2"),
    "Qwen3": decoder("Qwen3"),
    "Phi": decoder("Phi", num_key_value_heads=2),
    "Phi-3": decoder("Phi3"),
    "StableLM": decoder("StableLm"),
    "Cohere": decoder("Cohere"),
    "OLMo 2": decoder("Olmo2"),
    "OLMoE": decoder("Olmoe", num_experts=3, num_experts_per_tok=2),
    "Granite": decoder("Granite"),
    "SmolLM3": decoder("SmolLM3"),
    "Falcon": decoder("Falcon", head_dim=None),
    "BLOOM": decoder("Bloom", n_head=2, n_layer=2),
    "GPT-NeoX": decoder("GPTNeoX"),
    "GPT-J": decoder("GPTJ", n_embd=WIDTH, n_layer=2, n_head=2, n_positions=16, rotary_dim=4),
    "GPT-Neo": decoder(
        "GPTNeo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
    ),
    "OPT": decoder("OPT", ffn_dim=20, word_embed_proj_dim=WIDTH),
    "RoBERTa": encoder("Roberta"),
    "ALBERT": encoder("Albert", embedding_size=8),
    "ELECTRA": encoder("Electra", embedding_size=8),
    "DistilBERT": encoder("DistilBert", dim=WIDTH, n_heads=2, n_layers=2, hidden_dim=20),
    "MPNet": encoder("MPNet"),
    "ModernBERT": encoder("ModernBert", global_attn_every_n_layers=2, local_attention=4),
    "DeBERTa v2": encoder(
        "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4
    ),
    "XLNet": encoder(
        "XLNet", max_position_embeddings=None, d_model=WIDTH, n_layer=2, n_head=2, d_inner=20
    ),
    "FNet": encoder("FNet"),
    "Longformer": encoder("Longformer", attention_window=[4, 4]),
    "BART": sequence_to_sequence("Bart"),
    "Pegasus": sequence_to_sequence("Pegasus"),
    "mT5": sequence_to_sequence(
        "MT5", d_kv=8, d_ff=20, num_layers=1, num_decoder_layers=1, num_heads=2
    ),
    "CLIP": two_towers("CLIP"),
    "SigLIP": two_towers("Siglip"),
    "DINOv2": of_pictures("Dinov2"),
    "BEiT of transformers": of_pictures("Beit", use_relative_position_bias=True),
    "DeiT": of_pictures("DeiT"),
    "ConvNeXt of transformers": of_pictures(
        "ConvNext", size=32, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2
    ),
    "ResNet of transformers": of_pictures(
        "ResNet", size=32, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]
    ),
    "SegFormer": of_pictures(
        "Segformer", size=32, num_encoder_blocks=2, hidden_sizes=[8, 16], depths=[1, 1],
        num_attention_heads=[1, 2], decoder_hidden_size=8, sr_ratios=[2, 1], strides=[4, 2],
        patch_sizes=[7, 3], mlp_ratios=[2, 2],
    ),
    "Swin of transformers": of_pictures(
        "Swin", size=32, head_dim=None, num_attention_heads=None, embed_dim=8, depths=[1, 1],
        num_heads=[2, 2], window_size=4,
    ),
}  # fmt: skip
TORCHVISION = {
    "ResNet": of_torchvision(
        lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=5, width_per_group=64)
    ),
    "ResNeXt": of_torchvision(
        lambda: resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], 5, groups=2, width_per_group=4)
    ),
    "VGG": of_torchvision(vgg),
    "DenseNet": of_torchvision(lambda: densenet.DenseNet(4, (2, 2), 8, num_classes=5)),
    "MobileNet v2": of_torchvision(
        lambda: vision.MobileNetV2(
            5, inverted_residual_setting=[[1, 8, 1, 1], [2, 16, 2, 2]], dropout=0.0, width_mult=0.25
        )
    ),
    "MobileNet v3": of_torchvision(mobilenet_v3),
    "EfficientNet": of_torchvision(efficientnet),
    "ConvNeXt": of_torchvision(convnext),
    "RegNet": of_torchvision(regnet),
    "ShuffleNet v2": of_torchvision(
        lambda: vision.ShuffleNetV2([1, 1, 1], [8, 16, 16, 16, 24], num_classes=5)
    ),
    "MNASNet": of_torchvision(lambda: vision.MNASNet(0.1, num_classes=5, dropout=0.0)),
    "SqueezeNet": of_torchvision(lambda: vision.SqueezeNet("1_1", num_classes=5, dropout=0.0)),
    "ViT of torchvision": of_torchvision(
        lambda: vision.VisionTransformer(32, 16, 2, 2, WIDTH, 20, num_classes=5)
    ),
    "MaxViT": of_torchvision(maxvit),
    "FCN": of_torchvision(fully_convolutional, IMAGES[..., :16, :16]),
}
MANY = {**TRANSFORMERS, **TORCHVISION}


def build(name: str) -> tuple:
    """(model in fp32, its inputs)."""
    torch.manual_seed(0)
    model, inputs = MANY[name]()
    return model, on(next(model.parameters()).device, inputs)
