"""S2FT: whole heads and channels train, on both sides of what they are coupled by."""

import re
from typing import Any

from torch import nn

from ...plan import Plan
from ...salience import select
from ...units import Units, units
from ..parts import weights_of
from ..recipe import recipe
from ..values import literally, several

VALUES = re.compile(r"(?:^|_)(?:v|value|values)(?:_|$)")  # of the last module in a name


@recipe(
    "s2ft", "S2FT, Yang et al. 2024, arXiv:2412.06289",
    {"density": 0.01, "score": "random", "reads_only": False}, follows="paper",
    decay_to="origin", settings=("scope", "floor", "cap", "normalize", "max_batches"),
)  # fmt: skip
def s2ft(
    model: nn.Module,
    batches: Any,
    *,
    density: float | None = None,
    budget: Any = None,
    score: Any = "random",
    reads_only: bool = False,
    found: Units | None = None,
    loss: Any = None,
    seed: int = 0,
    **settings: Any,
) -> Plan:
    """heads (rows of v, columns of o) and channels (rows of gate and up, columns of down), whole

    Whole units of `sft.units`, at random or by any score; under grouped queries a unit is a group
    of heads that share keys and values, and fused projections are taken apart. reads_only: the
    columns of o and down alone, which is what one of its code bases trains (the other swaps rows
    and columns). Where no name of a projection says that it makes values, q, k and v train.
    batches: the first one is run to find the units. Gradients accumulate as everywhere here. A
    share of the heads' and of the channels' entries each. Returns the plan.
    """
    kept = several(batches)
    every = found or units(model, kept[0] if kept else None, loss)
    amount = {"budget": budget} if density is None else {"density": density}
    chosen = Plan({})
    body = set(weights_of(model))
    for kind in ("heads", "channels"):
        names = _trained(every, kind, body, reads_only)
        if names:
            looked = {} if score in ("random", "magnitude") else {"batches": kept, "loss": loss}
            chosen = chosen | select(
                model, structure=kind, score=score, units=every, targets=literally(names),
                seed=seed, **amount, **looked, **settings,
            )  # fmt: skip
    if not chosen:
        undecided = f"; undecided: {every.undecided}" if every.undecided else ""
        raise ValueError(f"model: it has no heads or channels that sft.units finds{undecided}")
    return chosen


def _trained(every: Units, kind: str, body: set[str], reads_only: bool) -> list[str]:
    """The parameters of a kind of unit that train; units that an output head reads are left out."""
    found: dict[str, None] = {}
    for group in every.of(kind):
        makes = [share.parameter for share in group.shares if not share.takes]
        takes = [share.parameter for share in group.shares if share.takes]
        if not body.issuperset(takes):
            continue
        weights = [name for name in makes if len(every.shapes[name].stored) > 1]
        values = [name for name in weights if VALUES.search(_module(name))]
        first = (values or weights) if kind == "heads" else weights
        found |= dict.fromkeys(takes if reads_only else [*first, *takes])
    return list(found)


def _module(name: str) -> str:
    """The last module of a parameter's name."""
    return name.split(".")[-2] if "." in name else name
