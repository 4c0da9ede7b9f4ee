"""Rows as tokens, and batches of them."""

import re
from dataclasses import dataclass
from typing import Any

from .chats import IGNORED, encode_chat
from .config import Config
from .data import Row
from .library import transformers
from .misuse import Misuse
from .showing import say

Example = dict[str, Any]
FEW_CLASSES = 20  # as many may have a row each
_WHOLE = re.compile(r"-?[0-9]+")


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
    messages: str | None = None

    @classmethod
    def of(cls, config: Config, tokenizer: Any, labels: list[str]) -> "Encoder":
        data = config.data
        return cls(
            tokenizer=tokenizer,
            task=config.task,
            text=data.text,
            label=data.label,
            prompt=data.prompt,
            max_length=data.max_length,
            labels=labels,
            messages=data.messages,
        )

    def told(self) -> dict[str, Any]:
        """All of it that a file can hold."""
        own = dict(vars(self))
        del own["tokenizer"]
        return own

    def encode(self, rows: list[Row], key: str) -> list[Example]:
        """One example a row: input_ids, attention_mask and what is to be learnt.

        Of a language model a row that has nothing to learn within `max_length` is left out, and
        how many were is said. key: of the config, for messages.
        """
        if self.task == "text-classification":
            return [self._classified(row, key) for row in rows]
        examples = [self._learnt(row, key) for row in rows]
        kept = [each for each in examples if any(label != IGNORED for label in each["labels"][1:])]
        if rows and not kept:
            raise Misuse(
                f"data.max_length: {self.max_length}, and no row of {key} has anything to learn"
                " within so many tokens; give a larger one"
            )
        if len(kept) < len(examples):
            say(
                f"{key}: {len(examples) - len(kept)} of {len(examples)} rows have nothing to learn"
                f" within data.max_length, {self.max_length} tokens, and are left out"
            )
        return kept

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

    def _learnt(self, row: Row, key: str) -> Example:
        """A chat or a text as tokens, and which of them are learnt."""
        if self.messages is not None:
            tokens, labels = encode_chat(self.tokenizer, row[self.messages], key)
        else:
            tokens, labels = self._continued(row)
        tokens = tokens[: self.max_length]
        mask = [1] * len(tokens)
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels[: self.max_length]}

    def _continued(self, row: Row) -> tuple[list[int], list[int]]:
        """A text, ended; what stands in the column of the prompt is read and not learnt."""
        given = [] if self.prompt is None else self._tokens(row[self.prompt])
        learnt = self.tokenizer(row[self.text], add_special_tokens=not given)["input_ids"]
        learnt = list(learnt)
        end = self.tokenizer.eos_token_id
        if end is not None and learnt[-1:] != [end]:
            learnt.append(end)
        return given + learnt, [IGNORED] * len(given) + learnt

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
    """The classes in the rows, sorted; those that are all whole numbers by their value."""
    found = {row[column].strip() for row in rows}
    if len(found) < 2:
        raise Misuse(
            f"data.label: the column {column!r} holds {len(found)} class, {sorted(found)}; two are"
            " the least: say which column holds the class with `label: NAME`"
        )
    if len(found) > max(FEW_CLASSES, len(rows) // 2):
        raise Misuse(
            f"data.label: the column {column!r} holds {len(found)} classes in {len(rows)} rows,"
            f" such as {', '.join(map(repr, sorted(found)[:3]))}; less than two rows a class teach"
            " nothing: say which column holds the class with `label: NAME`"
        )
    if all(_WHOLE.fullmatch(each) for each in found):
        return sorted(found, key=int)
    return sorted(found)
