"""LT-SFT and FedSelect: what a short run has moved the most is what trains."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...plan import Plan
from ...salience import scores, select
from ...salience.scores.weights import OfWeights
from ...selection import Entries
from ..parts import weights_of
from ..recipe import recipe
from ..values import literally
from .full_run import after_training


@recipe(
    "lt_sft", "LT-SFT, Ansell et al. 2022, arXiv:2110.07560",
    {"density": 0.05, "scope": "global", "steps": 100, "lr": 5e-5}, decay_to="origin",
)  # fmt: skip
def lt_sft(
    model: nn.Module,
    batches: Any,
    *,
    steps: int = 100,
    lr: float = 5e-5,
    density: float | None = None,
    budget: Any = None,
    scope: str = "global",
    targets: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> Plan:
    """the entries that a short run of full fine-tuning moves the most; it is rewound first

    The run takes `steps` steps of AdamW at `lr` over the batches, at the cost of full fine-tuning;
    every bit of the weights comes back. Its deltas add up (`sft.merge`): a language and a task.
    Returns the plan.
    """
    names = weights_of(model, targets)
    amount = {"budget": budget} if density is None else {"density": density}

    def moved_most(before: Mapping[str, torch.Tensor]) -> Plan:
        score: Any = scores.movement(before)
        return select(
            model, structure="entries", scope=scope, score=score, targets=literally(names),
            seed=seed, **amount,
        )  # fmt: skip

    return after_training(model, names, batches, moved_most, loss=loss, steps=steps, lr=lr)


@recipe(
    "fedselect", "FedSelect, Tamirisa et al. 2024, arXiv:2404.02478",
    {"density": 0.05, "scope": "layer"}, follows="paper",
)  # fmt: skip
def fedselect(
    model: nn.Module,
    batches: Any,
    *,
    base: Any = None,
    previous: Any = None,
    density: float | None = None,
    budget: Any = None,
    scope: str = "layer",
    targets: Any = None,
    seed: int = 0,
) -> Plan:
    """the entries that a client's training has moved the most since `base`, and those from before

    model: after a client's round. base: the model before it, or its state. previous: the plan of
    the rounds before; its entries stay, and the share `density` of the others that moved the most
    joins. What the plan names is the client's own; the rest is averaged with the other clients'
    (put_back(model, global model, plan, "outside")). Returns the plan.
    """
    if base is None:
        raise ValueError("base: the model before the client's round is needed, got None")
    amount = {"budget": budget} if density is None else {"density": density}
    score: Any = _others_first(base, previous) if previous else scores.movement(base)
    plan = select(
        model, structure="entries", scope=scope, score=score, targets=targets, seed=seed, **amount
    )
    joined: dict[str, Any] = dict(previous or {})
    for name, entries in plan.items():
        index = entries.index.long()  # type: ignore[union-attr]
        if name in joined:
            index = torch.cat((joined[name].index.long(), index)).unique()
        joined[name] = Entries(index)
    return Plan(joined)


def _others_first(base: Any, previous: Mapping[str, Any]) -> Any:
    """Movement, of what is not chosen yet."""
    inner = scores.movement(base)

    def rate(name: str, weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        score = inner.rate(name, weight, generator)
        if name in previous:
            score.masked_fill_(previous[name].mask(tuple(weight.shape)).to(score.device), -1.0)
        return score

    return OfWeights("movement of others", rate)
