"""Skill grafting and restoring alignment: after a training, part of it is taken back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...places import matrix_shape
from ...plan import ALL, Plan
from ...salience import scores, select
from ...salience.arguments import one_of
from ..recipe import recipe

Base = Mapping[str, torch.Tensor] | nn.Module


@torch.no_grad()
def put_back(
    model: nn.Module, base: Base, plan: Mapping[str, Any], where: str = "outside"
) -> nn.Module:
    """Write the base's weights over the model's: "outside" of what the plan selects, or "inside".

    model: not converted (or reverted). base: the model before its training, or its state.
    "outside" also writes every parameter that the plan does not name. Returns the model. Raises
    ValueError or KeyError that names what does not fit, before anything is written.
    """
    one_of("where", where, ("outside", "inside"))
    before = dict(base.named_parameters()) if isinstance(base, nn.Module) else dict(base)
    named = dict(model.named_parameters())
    names = list(named) if where == "outside" else list(plan)
    for name in names:
        if name not in named:
            raise KeyError(f"plan: the model has no parameter {name!r}")
        if name not in before or before[name].shape != named[name].shape:
            raise ValueError(f"base: it has nothing of the shape of {name!r}")
    for name in names:
        parameter, old = named[name], before[name].detach().to(named[name])
        mask = _mask(model, name, plan.get(name), parameter)
        parameter.copy_(torch.where(mask if where == "inside" else ~mask, old, parameter))
    return model


def _mask(model: nn.Module, name: str, what: Any, parameter: torch.Tensor) -> torch.Tensor:
    """bool, shaped as the parameter: what of it is selected."""
    if what is None or isinstance(what, str):
        return torch.full(parameter.shape, what == ALL, device=parameter.device)
    return what.mask(matrix_shape(model, name)).view(parameter.shape).to(parameter.device)


@recipe(
    "grafting", "Skill localisation, Panigrahi et al. 2023, arXiv:2302.06600", {"density": 1e-4},
    follows="paper",
)  # fmt: skip
def grafting(
    model: nn.Module,
    batches: Any,
    *,
    base: Any = None,
    density: float | None = None,
    budget: Any = None,
    targets: Any = None,
    seed: int = 0,
) -> Plan:
    """after full fine-tuning: the entries that moved the most, in all weights together

    `sft.recipes.put_back(model, base, plan)` then restores everything outside of them, bit for bit.
    base: the model before its training, or its state. This is where the paper's search for a mask
    by gradients begins; the search itself is left out. Returns the plan.
    """
    if base is None:
        raise ValueError("base: the model before its training is needed, got None")
    amount = {"budget": budget} if density is None else {"density": density}
    score: Any = scores.movement(base)
    return select(
        model, structure="entries", scope="global", score=score, targets=targets, seed=seed,
        **amount,
    )  # fmt: skip


@recipe(
    "alignment", "Restoring alignment after fine-tuning (safety-critical entries)",
    {"density": 0.01, "score": "saliency"}, follows="description",
)  # fmt: skip
def alignment(
    model: nn.Module,
    batches: Any,
    *,
    score: Any = "saliency",
    density: float | None = None,
    budget: Any = None,
    targets: Any = None,
    loss: Any = None,
    max_batches: int | None = None,
    seed: int = 0,
) -> Plan:
    """before fine-tuning, of the aligned model: the entries its alignment depends on the most

    batches: of what it was aligned to do (refusals, say). After the fine-tuning of anything,
    `sft.recipes.put_back(model, aligned, plan, "inside")` gives these entries their aligned values
    back; or leave them out of what trains. score: |W · E g| or any other. Returns the plan.
    """
    amount = {"budget": budget} if density is None else {"density": density}
    return select(
        model, structure="entries", score=score, batches=batches, targets=targets, loss=loss,
        max_batches=max_batches, seed=seed, **amount,
    )  # fmt: skip
