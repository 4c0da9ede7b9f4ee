"""Small models whose modules read the weights of others.

`F.linear(x, self.qkv.weight)`, `emb(i) @ emb.weight.T`, and models that work in place on the output
of a layer.

Each is a function that returns (model, inputs): random weights, no dropout, one or two layers of
everything.
"""

from collections.abc import Callable

import timm.models
import torch
import transformers
from helpers.architectures import PICTURE, TOKENS
from helpers.devices import on
from torchvision.models import swin_transformer as swin

WIDTH = 16
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().view(2, 3, 16, 16)
SOUND = torch.linspace(-1, 1, 2 * 120).mul(40).sin().view(2, 120)
NO_DROPOUT = {
    name: 0.0
    for name in (
        "hidden_dropout",
        "hidden_dropout_prob",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "activation_dropout",
        "dropout",
        "feat_proj_dropout",
        "final_dropout",
        "layerdrop",
        "pooler_dropout",
    )
}
ENCODER = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}


def swin_of_torchvision(version: int) -> Callable:
    def make():
        blocks = {1: swin.SwinTransformerBlock, 2: swin.SwinTransformerBlockV2}
        merging = {1: swin.PatchMerging, 2: swin.PatchMergingV2}
        model = swin.SwinTransformer(
            patch_size=[2, 2],
            embed_dim=8,
            depths=[2, 1],
            num_heads=[2, 2],
            window_size=[2, 2],
            mlp_ratio=2.0,
            stochastic_depth_prob=0.0,
            num_classes=5,
            block=blocks[version],
            downsample_layer=merging[version],
        )
        return model, (IMAGES,)

    return make


def beit():
    model = timm.models.beit.Beit(
        img_size=8,
        patch_size=4,
        embed_dim=WIDTH,
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        num_classes=5,
        init_values=0.1,
        use_rel_pos_bias=True,
        use_abs_pos_emb=False,
    )
    return model, (PICTURE,)


def eva(fused: bool) -> Callable:
    """EVA-02: rotary positions, SwiGLU; fused: one layer for q, k and v, whose weight is read."""

    def make():
        model = timm.models.eva.Eva(
            img_size=8,
            patch_size=4,
            embed_dim=WIDTH,
            depth=2,
            num_heads=2,
            qkv_fused=fused,
            mlp_ratio=1.5,
            swiglu_mlp=True,
            scale_mlp=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(2, 2),
            num_classes=5,
        )
        return model, (PICTURE,)

    return make


def deberta():
    config = transformers.DebertaConfig(
        vocab_size=20,
        max_position_embeddings=16,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        max_relative_positions=8,
        **ENCODER,
        **NO_DROPOUT,
    )
    return transformers.DebertaForSequenceClassification(config), TOKENS


def speech(family: str) -> Callable:
    def make():
        config = getattr(transformers, f"{family}Config")(
            conv_dim=[8, 8],
            conv_stride=[4, 2],
            conv_kernel=[6, 3],
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            num_feat_extract_layers=2,
            apply_spec_augment=False,
            mask_time_prob=0.0,
            classifier_proj_size=8,
            num_buckets=8,
            max_bucket_distance=16,
            **ENCODER,
            **NO_DROPOUT,
        )
        return getattr(transformers, f"{family}ForSequenceClassification")(config), {
            "input_values": SOUND
        }

    return make


def mamba():
    config = transformers.MambaConfig(
        vocab_size=20,
        hidden_size=WIDTH,
        state_size=4,
        num_hidden_layers=2,
        time_step_rank=4,
        tie_word_embeddings=False,
        use_cache=False,
    )
    return transformers.MambaForCausalLM(config), TOKENS


def perceiver():
    config = transformers.PerceiverConfig(
        num_latents=3,
        d_latents=WIDTH,
        d_model=WIDTH,
        num_blocks=1,
        num_self_attends_per_block=1,
        num_self_attention_heads=2,
        num_cross_attention_heads=2,
        qk_channels=8,
        v_channels=WIDTH,
        vocab_size=20,
        max_position_embeddings=6,
        attention_probs_dropout_prob=0.0,
    )
    tokens = TOKENS["input_ids"]
    return transformers.PerceiverForMaskedLM(config), {
        "inputs": tokens,
        "attention_mask": torch.ones_like(tokens),
    }


def prophetnet():
    config = transformers.ProphetNetConfig(
        vocab_size=20,
        hidden_size=WIDTH,
        encoder_ffn_dim=20,
        num_encoder_layers=1,
        num_encoder_attention_heads=2,
        decoder_ffn_dim=20,
        num_decoder_layers=1,
        num_decoder_attention_heads=2,
        max_position_embeddings=32,
        num_buckets=8,
        relative_max_distance=16,
        decoder_start_token_id=1,
        use_cache=False,
        **{
            name: NO_DROPOUT[name]
            for name in ("attention_dropout", "activation_dropout", "dropout")
        },
    )
    model = transformers.ProphetNetForConditionalGeneration(config)
    return model, {**TOKENS, "decoder_input_ids": TOKENS["input_ids"].flip(1)}


READING = {
    "Swin v1 of torchvision": swin_of_torchvision(1),
    "Swin v2 of torchvision": swin_of_torchvision(2),
    "BEiT of timm": beit,
    "EVA-02 of timm": eva(fused=False),
    "EVA-02 of timm, fused": eva(fused=True),
    "DeBERTa v1": deberta,
    "wav2vec2": speech("Wav2Vec2"),
    "WavLM": speech("WavLM"),
    "Mamba": mamba,
    "Perceiver": perceiver,
    "ProphetNet": prophetnet,
}


def build(name: str) -> tuple:
    """(model in fp32, its inputs)."""
    torch.manual_seed(0)
    model, inputs = READING[name]()
    return model, on(next(model.parameters()).device, inputs)
