"""A model and data that every page here can have at once: put your own in their place."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "a cat dog sat ran on the mat far away and then slept it was good not . ?".split()
SENTENCES = ["the cat sat on the mat .", "a dog ran far away .", "it slept and then it ran ."] * 8


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "eos_token", "unk_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def model() -> LlamaForCausalLM:
    """A Llama of two small layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3 + len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def rows() -> list[dict[str, torch.Tensor]]:
    """Sentences as tokens, [8] each."""
    encode = tokenizer()
    tokens = encode(SENTENCES, padding="max_length", max_length=8, return_tensors="pt").input_ids
    return [{"input_ids": each, "labels": each} for each in tokens]


def batches(epochs: int = 1) -> list[dict[str, torch.Tensor]]:
    """Four rows each."""
    loader = torch.utils.data.DataLoader(rows(), batch_size=4)
    return [batch for _ in range(epochs) for batch in loader]
