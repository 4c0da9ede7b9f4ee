"""Text classification: a CSV file with the columns text and label, to a delta of the model.

    python examples/text_classification.py FOLDER_OF_A_MODEL FILE.csv
    python examples/text_classification.py        a stand-in of both, in seconds

A fresh head is trained alone first: until it knows the task, gradients say little about the rest.
"""

import csv
import random
import sys

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import sparse_ft as sft

BATCH = 16


def stand_in():
    """(a function that loads a small BERT, its tokenizer, [(text, label)])."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = "[PAD] [UNK] a film the plot is was good fine great bad dull poor and so very".split()
    vocabulary = {word: number for number, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]"
    )
    draw = random.Random(0)
    rows = []
    for number in range(160):
        judged = draw.choice(["good fine great", "bad dull poor"][number % 2].split())
        rows.append((f"the {draw.choice(['film', 'plot'])} is so very {judged}", str(number % 2)))

    def load():
        torch.manual_seed(0)
        sizes = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4)
        return BertForSequenceClassification(
            BertConfig(vocab_size=len(words), num_hidden_layers=2, initializer_range=0.2, **sizes)
        )

    return load, tokenizer, rows


def from_files(folder, path):
    """The same of a model's folder and a file."""
    with open(path, newline="") as file:
        rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]

    def load():
        torch.manual_seed(0)  # the head is drawn
        labels = len({label for _, label in rows})
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)

    return load, AutoTokenizer.from_pretrained(folder), rows


def batches_of(rows, tokenizer):
    """The rows as batches, in an order that is drawn once."""
    names = sorted({label for _, label in rows})
    rows = random.Random(0).sample(rows, len(rows))
    batches = []
    for start in range(0, len(rows), BATCH):
        texts, labels = zip(*rows[start : start + BATCH])
        batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        batch["labels"] = torch.tensor([names.index(label) for label in labels])
        batches.append(dict(batch))
    return batches


def train(model, batches, lr, epochs):
    """A plain loop over what trains."""
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=lr, weight_decay=0.01)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def accuracy(model, batches):
    """The share of `batches` that the model names rightly."""
    model.eval()
    right = [model(**batch).logits.argmax(-1) == batch["labels"] for batch in batches]
    return torch.cat(right).float().mean().item()


def main(arguments):
    load, tokenizer, rows = from_files(*arguments) if arguments else stand_in()
    batches = batches_of(rows, tokenizer)
    held_out, training = batches[: len(batches) // 5 or 1], batches[len(batches) // 5 or 1 :]

    model = load()
    head = sft.Plan.match(model, {"classifier.*": "all"})
    sft.convert(model, head)
    train(model, training, lr=3e-2, epochs=3)
    sft.revert(model)

    plan = sft.select(model, density=0.01, structure="entries", batches=training[:4]) | head
    print(sft.convert(model, plan, lean=True))
    train(model, training, lr=1e-2, epochs=3)  # 2.5e-3 for a pretrained one
    print(f"accuracy {accuracy(model, held_out):.3f}")

    sft.save_delta(model, "delta.safetensors")
    again = sft.apply(load(), sft.load_delta("delta.safetensors"))
    print(f"base and delta: accuracy {accuracy(again, held_out):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
