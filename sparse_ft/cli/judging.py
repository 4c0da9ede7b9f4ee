"""Whether a run has learnt, by its losses and by what it was judged on."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .config import Config
from .data import Row, Rows

LITTLE = 0.98  # of the loss of knowing only how often each class occurs
FEWEST = 4  # logged losses that tell a trend


def learnt_nothing(
    config: Config, rows: Rows, history: Sequence[dict[str, Any]], evaluated: dict[str, Any] | None
) -> str | None:
    """What shows that a run has learnt nothing, and what to try; None where it has learnt.

    history: of the Trainer. evaluated: what the run reports of the rows that were held out.
    """
    is_classes = config.task == "text-classification"
    why = _of_classes(config, rows, history, evaluated) if is_classes else _of_texts(history)
    if why is None:
        return None
    rate = config.rate
    return (
        f"this run has learnt next to nothing: {why}. training.learning_rate was {rate:g}: try"
        f" {rate / 3:.1g} and {rate * 3:.1g} (--lr), or more training.epochs"
    )


def _of_classes(
    config: Config, rows: Rows, history: Sequence[dict[str, Any]], evaluated: dict[str, Any] | None
) -> str | None:
    column = config.data.label
    counts = _counts(rows.train, column)
    losses = _logged(history) or [each["train_loss"] for each in history if "train_loss" in each]
    known = _entropy(counts)
    if losses and _end(losses) >= LITTLE * known:
        return (
            f"its training loss ended at {_end(losses):.3f}, and knowing only how often each class"
            f" occurs gives {known:.3f}"
        )
    if evaluated is None:
        return None
    usual = counts.most_common(1)[0][0]
    share = _counts(rows.validation, column)[usual] / len(rows.validation)
    if evaluated["accuracy"] <= share:
        return (
            f"its validation accuracy, {evaluated['accuracy']:.3f}, is not above {share:.3f}, that"
            f" of always answering {usual!r}"
        )
    return None


def _of_texts(history: Sequence[dict[str, Any]]) -> str | None:
    losses = _logged(history)
    if len(losses) < FEWEST:
        return None
    quarter = len(losses) // FEWEST
    begin = sum(losses[:quarter]) / quarter
    if _end(losses) < begin:
        return None
    return f"its training loss was {begin:.3f} at first, and {_end(losses):.3f} at the end"


def _logged(history: Sequence[dict[str, Any]]) -> list[float]:
    return [float(entry["loss"]) for entry in history if "loss" in entry]


def _end(losses: Sequence[float]) -> float:
    """The mean of the last quarter."""
    last = losses[-max(1, len(losses) // FEWEST) :]
    return sum(last) / len(last)


def _counts(rows: Sequence[Row], column: str) -> Counter:
    return Counter(row[column].strip() for row in rows)


def _entropy(counts: Counter) -> float:
    """In nats."""
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())
