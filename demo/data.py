"""Tasks: tokenised, deduplicated, split into train, validation and test with a fixed seed."""

import csv
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch

from demo.errors import DemoError

MAX_LENGTH = 64  # tokens
SPLIT_SEED = 0


@dataclass
class Split:
    tokens: list  # [n] lists of token ids, each at most MAX_LENGTH long
    labels: list  # [n] class numbers

    def __len__(self):
        return len(self.labels)


@dataclass
class Task:
    name: str
    checkpoint: str  # folder that AutoModelForSequenceClassification reads
    classes: list  # class names
    pad_id: int
    train: Split
    validation: Split
    test: Split
    learning_rates: str = "reviews"  # which column of methods.LEARNING_RATES
    notes: list = field(default_factory=list)


def deduplicate(rows):
    """First of each text, compared without case and spacing.

    Texts that carry two labels are dropped altogether.
    """
    labels = {}
    for text, label in rows:
        labels.setdefault(" ".join(text.lower().split()), {}).setdefault(label, text)
    return [
        (text, label)
        for found in labels.values()
        if len(found) == 1
        for label, text in found.items()
    ]


def split(rows):
    """(train, validation, test) of shuffled rows.

    At most 1,000 each for validation and test, at most an eighth.
    """
    rows = list(rows)
    random.Random(SPLIT_SEED).shuffle(rows)
    held = min(1000, len(rows) // 8)
    return rows[2 * held :], rows[held : 2 * held], rows[:held]


def read_csv(path, keep=lambda row: True):
    """[(text, label)] of a csv file with a header that names at least the columns text
    and label.
    """
    path = Path(path)
    if not path.is_file():
        raise DemoError(f"--data: there is no file {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = [name for name in ("text", "label") if name not in (reader.fieldnames or [])]
            if absent:
                raise DemoError(
                    f"--data: {path} needs the columns text and label in its first line; missing:"
                    f" {', '.join(absent)}; found:"
                    f" {', '.join(reader.fieldnames or []) or 'nothing'}"
                )
            rows = [
                (row["text"], row["label"].strip())
                for row in reader
                if row["text"] and row["label"] and keep(row)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DemoError(f"--data: {path} is not a csv file in UTF-8: {error}") from error
    return rows


def text_task(name, rows, checkpoint, tokenizer):
    """A Task of [(text, label)]; labels are numbered in sorted order."""
    rows = deduplicate(rows)
    classes = sorted({label for _, label in rows})
    if len(classes) < 2 or len(rows) < 64:
        raise DemoError(
            f"--data: {name} holds {len(rows)} different texts in {len(classes)} classes; at least"
            " 64 in 2 are needed"
        )
    parts = []
    for part in split(rows):
        tokens = tokenizer([text for text, _ in part], truncation=True, max_length=MAX_LENGTH)[
            "input_ids"
        ]
        parts.append(Split(tokens, [classes.index(label) for _, label in part]))
    return Task(name, str(checkpoint), classes, tokenizer.pad_token_id, *parts)


def collate(data, positions, pad_id):
    """dict of input_ids, attention_mask [batch, longest] and labels [batch] for the examples at
    these positions.
    """
    rows = [data.tokens[p] for p in positions]
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        ),
        "labels": torch.tensor([data.labels[p] for p in positions]),
    }


def training_order(count, steps, batch_size, seed):
    """[steps] lists of batch_size positions.

    Reshuffled epochs, the same for every method of one seed.
    """
    shuffle, order = random.Random(seed), []
    while len(order) < steps * batch_size:
        epoch = list(range(count))
        shuffle.shuffle(epoch)
        order += epoch
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(steps)]
