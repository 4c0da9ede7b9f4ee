"""Tiny models of the architectures whose units are compared with brute force.

Each is a function that returns (model in fp64 and evaluation, batch). Everywhere several heads, and
in mixtures every token goes through every expert.
"""

import torch
import transformers
from helpers.devices import on

WIDTH, VOCABULARY = 8, 24
TOKENS = {"input_ids": torch.arange(24).reshape(2, 12) * 7 % VOCABULARY}
PICTURES = torch.linspace(-9, 9, 2 * 3 * 32 * 32).sin().view(2, 3, 32, 32)
SOUND = torch.linspace(-99, 99, 2 * 8 * 16).sin().view(2, 8, 16)
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 10,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
ENCODER = {key: DECODER[key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
ENCODER |= {"num_hidden_layers": 1, "num_attention_heads": 4, "initializer_range": 0.3}


def decoder(family: str, config: str = "", **more):
    config = getattr(transformers, f"{config or family}Config")(**{**DECODER, **more})
    return getattr(transformers, f"{family}ForCausalLM")(config), TOKENS


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=4, n_inner=10
    )
    return transformers.GPT2LMHeadModel(config), TOKENS


def bert():
    config = transformers.BertConfig(**ENCODER, max_position_embeddings=16, num_labels=3)
    return transformers.BertForSequenceClassification(config), TOKENS


def t5():
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=4,
        d_ff=10,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=4,
        decoder_start_token_id=0,
    )
    inputs = {**TOKENS, "decoder_input_ids": TOKENS["input_ids"].flip(1)}
    return transformers.T5ForConditionalGeneration(config), inputs


def vit():
    config = transformers.ViTConfig(**ENCODER, image_size=32, patch_size=8, num_labels=3)
    return transformers.ViTForImageClassification(config), {"pixel_values": PICTURES}


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        d_model=WIDTH,
        encoder_ffn_dim=10,
        decoder_ffn_dim=10,
        max_source_positions=8,
        max_target_positions=16,
        decoder_start_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        init_std=0.3,
    )
    inputs = {"input_features": SOUND, "decoder_input_ids": TOKENS["input_ids"]}
    return transformers.WhisperForConditionalGeneration(config), inputs


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=6, hidden_sizes=[6, 12], depths=[2, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    # No ReLU is off anywhere: brute force looks at single entries of gradients.
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            parameter.data *= 0.1
        elif name.endswith("normalization.bias"):
            torch.nn.init.uniform_(parameter, 3.0, 4.0)
    return model, {"pixel_values": PICTURES}


ARCHITECTURES = {
    "Llama": lambda: decoder("Llama"),
    "Qwen3": lambda: decoder("Qwen3"),
    "Gemma3": lambda: decoder("Gemma3", "Gemma3Text", hidden_activation="gelu_pytorch_tanh"),
    "Phi-3": lambda: decoder("Phi3"),
    "GPT-2": gpt2,
    "GPT-NeoX": lambda: decoder("GPTNeoX", num_key_value_heads=None, head_dim=None),
    "BERT": bert,
    "T5": t5,
    "ViT": vit,
    "Whisper": whisper,
    "Qwen3-MoE": lambda: decoder(
        "Qwen3Moe", num_experts=3, num_experts_per_tok=3, moe_intermediate_size=5
    ),
    "ResNet": resnet,
}


def build(name: str):
    torch.manual_seed(0)
    model, batch = ARCHITECTURES[name]()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # torch's grouped product does not know fp64
    batch = on(next(model.parameters()).device, batch)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    return model.double().eval(), batch
