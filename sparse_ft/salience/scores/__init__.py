"""Scores: how much each entry of a weight matters.

One file a family; `NAMED` is what `select` takes by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ...messages import described, did_you_mean
from ..score import Score
from .activation import activation
from .gradients import fisher, gradient, gradient_abs, ratio, saliency, sensitivity, snip, taylor
from .grasp import grasp
from .outputs import fisher_expected, synflow
from .weak_columns import weak_columns
from .weights import given, magnitude, movement, principal, random

__all__ = [
    "NAMED",
    "Score",
    "activation",
    "as_score",
    "fisher",
    "fisher_expected",
    "given",
    "gradient",
    "gradient_abs",
    "grasp",
    "magnitude",
    "movement",
    "principal",
    "random",
    "ratio",
    "saliency",
    "sensitivity",
    "snip",
    "synflow",
    "taylor",
    "weak_columns",
]

NAMED: dict[str, Callable[[], Any]] = {
    "random": random,
    "magnitude": magnitude,
    "magnitude_bottom": lambda: magnitude(top=False),
    "principal": principal,
    "gradient": gradient,
    "gradient_abs": gradient_abs,
    "fisher": fisher,
    "fisher_expected": fisher_expected,
    "saliency": saliency,
    "taylor": taylor,
    "snip": snip,
    "synflow": synflow,
    "grasp": grasp,
    "sensitivity": sensitivity,
    "ratio": ratio,
    "activation": activation,
}


def as_score(score: Any) -> Any:
    """The score that a name, a mapping {name: tensor} or a score itself means.

    Raises ValueError for an unknown name, TypeError for anything else.
    """
    if isinstance(score, str):
        if score not in NAMED:
            meant = did_you_mean(score, NAMED)
            near = meant if "did you mean" in meant else ""
            raise ValueError(
                f"score: expected {' or '.join(map(repr, NAMED))}, a Score or a mapping"
                f" {{name: tensor}}, got {score!r}{near}"
            )
        return NAMED[score]()
    if isinstance(score, Mapping):
        return given(score)
    if isinstance(score, Score) or hasattr(score, "source"):
        return score
    if callable(score) and score in NAMED.values():
        raise TypeError(f"score: got the function {score.__name__}; call it: {score.__name__}()")
    raise TypeError(
        "score: expected a name, an sft.Score, or a mapping {parameter name: tensor}, got"
        f" {described(score)}"
    )
