"""What the blocks of docs/ start from: small models and data, under the names of the pages."""

import json
import random
from pathlib import Path
from typing import Any

import torch

WORDS = [f"w{number}" for number in range(48)]
LABELS = ("negative", "positive")


def start() -> dict[str, Any]:
    """The names that a page may take for given."""
    return {
        "load_model": load_model,
        "batches": batches(),
        "rows": rows(),
        "load_encoder": load_encoder,
        "encoder_batches": encoder_batches(),
        "load_quantised": load_quantised,
        "sentences": [" ".join(WORDS[start : start + 6]) for start in range(12)],
        "tokenizer": tokenizer(),
    }


def load_model() -> Any:
    """A Llama of two layers, the same each time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=50, max_position_embeddings=64, use_cache=False, **sizes)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, None, 1
    return LlamaForCausalLM(config)


def load_encoder() -> Any:
    """A BERT of two layers with a head of two classes."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes)).eval()


def load_quantised() -> Any:
    """The Llama with its linear layers in 4 bits."""
    import pytest

    layers = pytest.importorskip("bitsandbytes").nn
    model = load_model()
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and not name.endswith("lm_head"):
            made = layers.Linear4bit(module.in_features, module.out_features, bias=False,
                                     quant_type="nf4", compute_dtype=torch.float32)  # fmt: skip
            made.weight.data = module.weight.detach().clone()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, made)
    return model.to("cpu")  # which quantises it


def tokens(count: int, seed: int) -> torch.Tensor:
    """int64 [count, 12]: numbers that count upwards, from anywhere."""
    first = torch.randint(2, 38, (count, 1), generator=torch.Generator().manual_seed(seed))
    return first + torch.arange(12)


def batches() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": each, "labels": each} for each in (tokens(4, seed) for seed in range(6))]


def rows() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": each, "labels": each} for each in tokens(16, 9)]


def encoder_batches() -> list[dict[str, torch.Tensor]]:
    drawn = [tokens(8, seed) for seed in range(6)]
    return [{"input_ids": each, "labels": each[:, 0] % 2} for each in drawn]


def tokenizer() -> Any:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<eos>"
    )


def write_encoder(folder: Path) -> None:
    """The encoder and its tokenizer, as a folder that `from_pretrained` reads."""
    load_encoder().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def write_decoder(folder: Path) -> None:
    """The Llama and its tokenizer, as a folder that `from_pretrained` reads."""
    load_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def write_pairs(path: Path, count: int = 32) -> None:
    """JSON lines of a prompt and its completion."""
    draw = random.Random(0)
    lines = []
    for _ in range(count):
        row = {"prompt": " ".join(draw.choices(WORDS, k=3)), "completion": draw.choice(WORDS)}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def write_reviews(path: Path, count: int = 64) -> None:
    """A CSV file with the columns text and label: which half of the words a row is made of."""
    draw = random.Random(0)
    lines = ["text,label"]
    for number in range(count):
        half = WORDS[24:] if number % 2 else WORDS[:24]
        lines.append(f"{' '.join(draw.choices(half, k=6))},{LABELS[number % 2]}")
    path.write_text("\n".join(lines) + "\n")
