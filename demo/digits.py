"""The fallback task: scikit-learn's digits as 64 pixel tokens, a small transformer pre-trained here
in seconds.

It is pre-trained to name upright digits, then fine-tuned on other digits turned by a quarter, so
there is something to transfer and something to learn.
"""

import random
import warnings

import numpy as np
import torch
from tqdm import tqdm

from demo.data import Split, Task, collate, training_order
from demo.train import linear_schedule

PIXEL_LEVELS = 17  # grey values 0..16
PRETRAINING_LR = 2e-3


def _images():
    """(upright half, turned half) of the 1,797 images as [(tokens [64], label)]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = list(range(len(digits.target)))
    random.Random(0).shuffle(order)
    images, labels = digits.images.astype(int), digits.target.tolist()
    half = len(order) // 2
    upright = [(images[i].ravel().tolist(), labels[i]) for i in order[:half]]
    turned = [(np.rot90(images[i]).ravel().tolist(), labels[i]) for i in order[half:]]
    return upright, turned


def _small_bert():
    from transformers import BertConfig, BertForSequenceClassification, logging

    logging.disable_progress_bar()
    config = BertConfig(
        vocab_size=PIXEL_LEVELS + 1,
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        pad_token_id=PIXEL_LEVELS,
        num_labels=10,
    )
    return BertForSequenceClassification(config)


def _pretrain(rows, folder, steps):
    """Train a small transformer on rows of (tokens, label) and save its body, without the head,
    under folder.
    """
    torch.manual_seed(0)
    model = _small_bert().train()
    data = Split([tokens for tokens, _ in rows], [label for _, label in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_LR, weight_decay=0.01)
    schedule = linear_schedule(optimizer, steps)
    order = training_order(len(data), steps, 32, seed=1)
    for positions in tqdm(order, desc="pre-training on upright digits", unit="step", disable=None):
        model(**collate(data, positions, PIXEL_LEVELS)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.base_model.save_pretrained(folder)


def digits_task(folder, pretraining_steps):
    """The Task; its checkpoint is written under folder."""
    upright, turned = _images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _pretrain(upright, folder, pretraining_steps)
    parts = [turned[400:], turned[200:400], turned[:200]]
    splits = [Split([tokens for tokens, _ in part], [label for _, label in part]) for part in parts]
    return Task(
        "digits turned by 90 degrees",
        str(folder),
        list(map(str, range(10))),
        PIXEL_LEVELS,
        *splits,
        "digits",
    )
