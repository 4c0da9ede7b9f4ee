"""Models of random weights, wide enough that what a layer holds outweighs single numbers."""

import torch
import transformers as tf
from torch import nn

BODY = dict(hidden_size=192, num_hidden_layers=1, num_attention_heads=4, intermediate_size=512)
TEXT = dict(vocab_size=384, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False)
DECODER = dict(num_key_value_heads=2, max_position_embeddings=256, **BODY, **TEXT)


def _gpt2():
    config = tf.GPT2Config(n_positions=256, n_embd=192, n_layer=1, n_head=4, **TEXT)
    return tf.GPT2LMHeadModel(config)


def _t5():
    sizes = dict(d_model=192, d_kv=48, d_ff=512, num_layers=1, num_decoder_layers=1, num_heads=4)
    return tf.T5ForConditionalGeneration(tf.T5Config(decoder_start_token_id=0, **sizes, **TEXT))


def _whisper():
    sizes = dict(
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4
    )
    sizes |= dict(
        d_model=192,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        num_mel_bins=40,
        max_source_positions=64,
    )
    config = tf.WhisperConfig(max_target_positions=128, decoder_start_token_id=1, **sizes, **TEXT)
    return tf.WhisperForConditionalGeneration(config)


MODELS = {
    "Llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**DECODER)),
    "Mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(sliding_window=32, **DECODER)),
    "Mixtral": lambda: tf.MixtralForCausalLM(
        tf.MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **DECODER)
    ),
    "BERT": lambda: tf.BertForSequenceClassification(tf.BertConfig(vocab_size=384, **BODY)),
    "GPT-2": _gpt2,
    "ViT": lambda: tf.ViTForImageClassification(tf.ViTConfig(image_size=64, patch_size=8, **BODY)),
    "T5": _t5,
    "Whisper": _whisper,
}


def wide(name):
    """The model, in training mode and fp32."""
    torch.manual_seed(0)
    return MODELS[name]().train()


class ConvNet(nn.Module):
    """Two convolutions with batch normalisation, and a linear layer on top."""

    def __init__(self):
        super().__init__()
        layers = [
            (nn.Conv2d(n, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
            for n in (3, 32)
        ]
        self.body, self.head = nn.Sequential(*layers[0], *layers[1]), nn.Linear(32 * 64, 10)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))
