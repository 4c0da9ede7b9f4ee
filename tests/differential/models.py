"""Small models of transformers for the differential test."""

import torch
import transformers
from torch import nn

from .sequences import padded

VOCABULARY = 11


class Logits(nn.Module):
    """A model of transformers, from tokens to logits.

    The last token of every sequence but the first is padding.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens, attention_mask=(~padded(tokens)).long()).logits


class Loss(Logits):
    """A causal language model of transformers, from tokens to its own loss."""

    def forward(self, tokens):
        labels = tokens.masked_fill(tokens == 3, -100)
        return self.model(
            tokens, attention_mask=(~padded(tokens)).long(), labels=labels
        ).loss.reshape(1)


def llama(dtype):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=8,
        use_cache=False,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    if dtype == torch.float64:  # transformers' norm rounds to fp32 inside, always
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child).__name__ == "LlamaRMSNorm":
                    setattr(parent, name, nn.RMSNorm(8, eps=1e-6))
    return Logits(model)


def bert(dtype):
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Logits(transformers.BertForSequenceClassification(config))


def gpt2(dtype):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Logits(transformers.GPT2LMHeadModel(config))


def llama_loss(dtype):
    return Loss(llama(dtype).model)


def gpt2_loss(dtype):
    return Loss(gpt2(dtype).model)


MODELS = {
    "llama": llama,
    "bert": bert,
    "gpt2": gpt2,
    "llama loss": llama_loss,
    "gpt2 loss": gpt2_loss,
}
