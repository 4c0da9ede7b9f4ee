"""The tasks: a real model, real data, and a second task that fine-tuning may forget.

A task makes its models, its training batches, and says how well a model does.
"""

import random
from dataclasses import dataclass

import torch

from demo import assets
from demo.data import Split, collate, deduplicate, read_csv, split, training_order
from demo.model import load_model, load_tokenizer

TRANSLATED = (("<br />", " "), ("\n", " "))


@dataclass(frozen=True)
class Setting:
    """What all runs of a table share. length: tokens. density: the budget of the recipes."""

    density: float = 0.005
    steps: int = 300
    batch_size: int = 8
    length: int = 32
    head_steps: int = 20  # of the head alone, before anything is chosen

    def __str__(self):
        return (
            f"{self.density:g} of the weights; {self.steps} steps of {self.batch_size} x"
            f" {self.length}; head {self.head_steps}"
        )


class Classification:
    """A sentence encoder, a fresh head, labelled sentences.

    The second task: of the first halves of texts, to find the second one among all by the encoder's
    own embeddings (the mean over tokens), which it was pretrained for.
    """

    head = ["classifier.*"]
    larger_is_better = True
    measure = "accuracy"

    def __init__(self, setting, checkpoint, classes, pad_id, splits, pairs, ends):
        """splits: train, validation, test, as `demo.data.Split`. pairs: [(tokens, tokens)]. ends:
        whether the last token of a sentence is to be kept when it is cut.
        """
        self.setting, self.checkpoint = setting, checkpoint
        self.classes, self.pad_id = classes, pad_id
        cut = [Split([self._cut(row, ends) for row in one.tokens], one.labels) for one in splits]
        self.train, self.validation, self.test = cut
        self.pairs = [(self._cut(a, ends), self._cut(b, ends)) for a, b in pairs]

    def _cut(self, row, ends):
        length = self.setting.length
        return row[: length - 1] + row[-1:] if ends and len(row) > length else row[:length]

    def model(self, seed):
        return load_model(self, seed)

    def batches(self, seed, steps=None):
        steps = self.setting.steps if steps is None else steps
        order = training_order(len(self.train), steps, self.setting.batch_size, seed)
        return [collate(self.train, positions, self.pad_id) for positions in order]

    @torch.no_grad()
    def scores(self, model):
        """(validation, test) accuracy."""
        model.eval()
        found = [self._accuracy(model, part) for part in (self.validation, self.test)]
        model.train()
        return found

    def _accuracy(self, model, data):
        order = sorted(range(len(data)), key=lambda at: len(data.tokens[at]))
        right = 0
        for start in range(0, len(order), 64):
            batch = collate(data, order[start : start + 64], self.pad_id)
            labels = batch.pop("labels")
            right += (model(**batch).logits.argmax(-1) == labels).sum().item()
        return right / len(order)

    @torch.no_grad()
    def second(self, model):
        """Share of the halves whose other half is the nearest of all."""
        model.eval()
        first, second = (self._embedded(model, [pair[n] for pair in self.pairs]) for n in (0, 1))
        model.train()
        nearest = (first @ second.T).argmax(1)
        return (nearest == torch.arange(len(nearest))).double().mean().item()

    def _embedded(self, model, rows):
        parts = []
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            batch = collate(Split(some, [0] * len(some)), range(len(some)), self.pad_id)
            del batch["labels"]
            hidden = model(**batch, output_hidden_states=True).hidden_states[-1]
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


def reviews(setting):
    """MiniLM-L6 on Rotten Tomatoes; halves of IMDB's reviews are the second task."""
    tokenizer = load_tokenizer(assets.encoder_folder())
    rows = read_csv(assets.reviews_file(), keep=lambda row: row["source"] == "rotten_tomatoes")
    rows = deduplicate(rows)
    classes = sorted({label for _, label in rows})
    parts = []
    for part in split(rows):
        tokens = tokenizer([text for text, _ in part])["input_ids"]
        parts.append(Split(tokens, [classes.index(label) for _, label in part]))
    halves = [(" ".join(words[:24]), " ".join(words[24:48])) for words in _long_texts(200)]
    pairs = zip(*(tokenizer([pair[n] for pair in halves])["input_ids"] for n in (0, 1)))
    folder = str(assets.encoder_folder())
    pad_id = tokenizer.pad_token_id
    return Classification(setting, folder, classes, pad_id, parts, list(pairs), ends=True)


def _long_texts(count):
    """Words of some of IMDB's reviews that have 48 of them at least."""
    rows = read_csv(assets.reviews_file(), keep=lambda row: row["source"] == "imdb")
    texts = [cleaned(text).split() for text, _ in rows]
    long = [words for words in texts if len(words) >= 48]
    random.Random(0).shuffle(long)
    return long[:count]


def cleaned(text):
    for old, new in TRANSLATED:
        text = text.replace(old, new)
    return text


class Language:
    """A decoder and blocks of text; the second task: another kind of text.

    splits: train, validation, test and other, each [blocks, length] of token ids.
    """

    head: list[str] = []
    larger_is_better = False
    measure = "perplexity"

    def __init__(self, setting, make, splits):
        self.setting, self._make = setting, make
        self.train, self.validation, self.test, self.other = splits

    def model(self, seed):
        torch.manual_seed(seed)
        return self._make().train()

    def batches(self, seed, steps=None):
        steps = self.setting.steps if steps is None else steps
        order = training_order(len(self.train), steps, self.setting.batch_size, seed)
        return [self._batch(self.train[positions]) for positions in order]

    @staticmethod
    def _batch(ids):
        return {"input_ids": ids, "labels": ids}

    def scores(self, model):
        """(validation, test) perplexity."""
        return [self._perplexity(model, part) for part in (self.validation, self.test)]

    def second(self, model):
        """One over the perplexity on the other text: larger is better, as of the other tasks."""
        return 1 / self._perplexity(model, self.other)

    @torch.no_grad()
    def _perplexity(self, model, blocks):
        model.eval()
        total = sum(model(**self._batch(some)).loss.item() * len(some) for some in blocks.split(8))
        model.train()
        return torch.tensor(total / len(blocks), dtype=torch.float64).exp().item()


def text(setting):
    """SmolLM2-135M on IMDB's reviews; Python's own documentation is the other text."""
    import pydoc_data.topics

    from bench.methods import decoder

    tokenizer = decoder.tokenizer()
    rows = read_csv(assets.reviews_file(), keep=lambda row: row["source"] == "imdb")
    texts = [cleaned(text) for text, _ in rows[:3000]]
    random.Random(0).shuffle(texts)
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    manual = tokenizer("\n\n".join(pydoc_data.topics.topics.values())[:200_000])["input_ids"]
    blocks = in_blocks(ids, setting.length)
    held = max(1, 2048 // setting.length)
    splits = blocks[2 * held :], blocks[:held], blocks[held : 2 * held]
    return Language(setting, decoder.model, [*splits, in_blocks(manual, setting.length)[:held]])


def in_blocks(ids, length):
    """[blocks, length] of a long row of ids; what is left at its end is left out."""
    ids = torch.tensor(ids)
    return ids[: len(ids) // length * length].view(-1, length)


def tiny(setting):
    """A small random encoder on invented sentences, for tests: the label is which of two words is
    the more frequent.
    """
    from bench.methods.small import classifier

    return classifier(setting)


TASKS = {"reviews": reviews, "text": text, "tiny": tiny}
# Tokens of a batch are chosen so that all runs of a table take about two hours on two quiet cores.
SETTINGS = {
    "reviews": Setting(),
    "text": Setting(steps=40, batch_size=2, length=64, head_steps=0),
    "tiny": Setting(density=0.05, steps=4, batch_size=4, length=8, head_steps=1),
}
