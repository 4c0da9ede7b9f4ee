"""A task of a second or two, for tests."""

import random
import tempfile

import torch

from bench.methods.tasks import Classification
from demo.data import Split

WORDS, PAD = 24, 0


def classifier(setting):
    """A BERT of 16 features on sentences of 6 to 12 words."""
    draw = random.Random(0)
    parts = [_sentences(draw, count) for count in (64, 16, 16)]
    pairs = [(_words(draw), _words(draw)) for _ in range(8)]
    folder = tempfile.mkdtemp(prefix="sparse_ft_tiny_")
    _save(folder)
    return Classification(setting, folder, ["0", "1"], PAD, parts, pairs, ends=False)


def _words(draw):
    return [draw.randrange(1, WORDS) for _ in range(draw.randrange(6, 12))]


def _sentences(draw, count):
    rows = [_words(draw) for _ in range(count)]
    return Split(rows, [int(row.count(1) + row.count(3) > row.count(2)) for row in rows])


def _save(folder):
    from transformers import BertConfig, BertForSequenceClassification, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
