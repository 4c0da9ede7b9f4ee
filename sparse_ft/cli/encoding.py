"""Rows as tokens, and batches of them."""

from dataclasses import dataclass
from typing import Any

from .config import Config
from .data import Row
from .library import transformers
from .misuse import Misuse

Example = dict[str, Any]
IGNORED = -100  # a label that no loss counts


@dataclass
class Encoder:
    """What makes examples of rows. labels: the classes, in the order of their numbers."""

    tokenizer: Any
    task: str
    text: str
    label: str
    prompt: str | None
    max_length: int
    labels: list[str]

    @classmethod
    def of(cls, config: Config, tokenizer: Any, labels: list[str]) -> "Encoder":
        data = config.data
        return cls(
            tokenizer, config.task, data.text, data.label, data.prompt, data.max_length, labels
        )

    def told(self) -> dict[str, Any]:
        """All of it that a file can hold."""
        own = dict(vars(self))
        del own["tokenizer"]
        return own

    def encode(self, rows: list[Row], key: str) -> list[Example]:
        """One example a row: input_ids, attention_mask and what is to be learnt.

        key: of the config, for the message where a class is unknown.
        """
        if self.task == "text-classification":
            return [self._classified(row, key) for row in rows]
        return [self._continued(row) for row in rows]

    def _tokens(self, text: str) -> list[int]:
        cut = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return list(cut["input_ids"])

    def _classified(self, row: Row, key: str) -> Example:
        label = row[self.label].strip()
        if label not in self.labels:
            raise Misuse(
                f"{key}: it has a class {label!r}, and the training rows have"
                f" {', '.join(map(repr, self.labels[:8]))}; leave those rows out, or train on them"
            )
        tokens = self._tokens(row[self.text])
        mask = [1] * len(tokens)
        return {"input_ids": tokens, "attention_mask": mask, "labels": self.labels.index(label)}

    def _continued(self, row: Row) -> Example:
        """A text, ended; what stands in the column of the prompt is read and not learnt."""
        given = [] if self.prompt is None else self._tokens(row[self.prompt])
        learnt = self.tokenizer(row[self.text], add_special_tokens=not given)["input_ids"]
        learnt = list(learnt)
        end = self.tokenizer.eos_token_id
        if end is not None and learnt[-1:] != [end]:
            learnt.append(end)
        tokens = (given + learnt)[: self.max_length]
        labels = ([IGNORED] * len(given) + learnt)[: self.max_length]
        return {"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": labels}

    def collator(self) -> Any:
        """What makes a batch of examples, padded to the longest."""
        library = transformers()
        if self.task == "text-classification":
            return library.DataCollatorWithPadding(self.tokenizer)
        return library.DataCollatorForSeq2Seq(self.tokenizer, label_pad_token_id=IGNORED)

    def batches(self, examples: list[Example], size: int, most: int) -> list[Any]:
        """The first `most` batches of `size` examples."""
        collate = self.collator()
        count = min(most, -(-len(examples) // size))
        return [collate(examples[at * size : (at + 1) * size]) for at in range(count)]

    def longest(self, examples: list[Example], size: int) -> Any:
        """A batch of the longest examples."""
        ordered = sorted(examples, key=lambda each: -len(each["input_ids"]))
        return self.collator()(ordered[:size])


def classes_of(rows: list[Row], column: str) -> list[str]:
    """The classes in the rows, sorted; those that are all numbers by their value."""
    found = {row[column].strip() for row in rows}
    if len(found) < 2:
        raise Misuse(
            f"data.label: the column {column!r} holds {len(found)} class, {sorted(found)}; two are"
            " the least: say which column holds the class with `label: NAME`"
        )
    if all(each.lstrip("-").isdecimal() for each in found):
        return sorted(found, key=int)
    return sorted(found)
