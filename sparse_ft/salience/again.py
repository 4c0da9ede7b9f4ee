"""Choosing anew in a converted model: from the parameters that have selected entries already.

Its linear layers give their gradient as two factors (`capture`), of the whole weight, whatever is
selected; no other module of a converted model does.
"""

import fnmatch
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..converted import holders_of, record_of, selected_in, sync
from ..nn.foreign import refuse_quantised
from ..nn.linear import Adopted
from ..nn.selected import Selected
from ..quantised.quantiser import quantiser_of
from .score import Score
from .targets import Targets

_REVERT = "sft.revert(model) first, then select and convert anew"


def is_converted(model: nn.Module) -> bool:
    """Whether any module of the model holds selected values."""
    return any(isinstance(module, Selected) for module in model.modules())


def targets_again(model: nn.Module, patterns: str | Iterable[str] | None) -> Targets:
    """The parameters with selected entries, or those of them that the patterns name.

    Their weights show their values afterwards. Raises ValueError for a model that `sft.convert` was
    not called on itself, and for a pattern that names none of them.
    """
    record = record_of(model)
    if record is None:
        name = next(n for n, module in model.named_modules() if isinstance(module, Selected))
        raise ValueError(
            f"model: it is converted already ({name!r} holds selected values) and is not the module"
            f" that sft.convert was called on; call select on that one, or {_REVERT}"
        )
    names = selected_in(record.plan)
    wanted = [patterns] if isinstance(patterns, str) else patterns
    for pattern in wanted or ():
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"targets: {pattern!r} names no parameter with selected entries, and the model is"
                f" converted already: only these can be chosen in anew; or {_REVERT}"
            )
    if wanted is not None:
        names = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in wanted)]
    for name, holder in holders_of(model).items():
        if name in names:
            refuse_quantised("targets", holder, _REVERT)
    sync(model)
    every = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for name in names if name not in every]
    if missing:
        raise ValueError(f"model: {missing[0]!r} is not where sft.convert found it; {_REVERT}")
    return Targets({name: every[name] for name in names}, {})


def check_quantised(score: Any, model: nn.Module, weights: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where a score wants gradients of a quantised weight, which has none."""
    if not score.needs_batches or getattr(score, "takes_quantised", False):
        return
    for name in weights:
        path, _, attribute = name.rpartition(".")
        if attribute == "weight" and quantiser_of(model.get_submodule(path)) is not None:
            raise ValueError(
                f"score: {score.name!r} needs the gradient of {name!r}, which is quantised and has"
                " none; take 'activation', sft.scores.weak_columns, a score of weights, or choose"
                " on the model before it is quantised"
            )


def check_again(score: Any, model: nn.Module, weights: dict[str, nn.Parameter]) -> None:
    """Raise ValueError where a converted model cannot give this score."""
    if not score.needs_batches:
        return
    if not isinstance(score, Score) or score.of_magnitudes:
        raise ValueError(
            f"model: it is converted already, and score={score.name!r} needs it as it was:"
            f" {_REVERT}; scores of plain gradients and of weights can be taken as it is"
        )
    for name in weights:
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, Adopted) or not name.endswith("weight"):
            raise ValueError(
                f"targets: gradients of {name!r} cannot be taken in a converted model, for it is of"
                f" no selective linear layer; leave it out, or {_REVERT}"
            )
