"""SPT: entries where few of a matrix matter, columns of it where many do."""

from typing import Any

import torch
from torch import nn

from ...plan import Plan
from ...salience import Score, select
from ..recipe import recipe
from ..settings import check_count
from ..values import literally, several


def squares() -> Score:
    """Σ g², a square a batch."""

    def update(acc: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        acc.addcmul_(gradient, gradient)

    return Score(update, name="squares", linear=True)


@recipe(
    "spt", "SPT, He et al. 2023, arXiv:2303.08566",
    {"density": 0.01, "max_batches": 16, "columns": 8}, follows="paper",
)  # fmt: skip
def spt(
    model: nn.Module,
    batches: Any,
    *,
    columns: int = 8,
    density: float | None = None,
    budget: Any = None,
    targets: Any = None,
    loss: Any = None,
    max_batches: int = 16,
    seed: int = 0,
) -> Plan:
    """the entries with the largest Σ g² in all weights; a weight with many of them trains columns

    A weight of which at least as many entries are chosen as `columns` of its columns hold goes
    structured: the `columns` with the largest Σ g² train, whole. The paper has LoRA or an adapter
    there, and so many entries as that has decide. Squares are of batches, 16 of them, as in its
    formula. Its backward multiplies two dense matrices; this one makes the chosen gradients alone.
    Returns the plan.
    """
    amount = {"budget": budget} if density is None else {"density": density}
    check_count("columns", columns)
    kept = several(batches, max_batches)
    common: dict[str, Any] = {
        "score": squares(),
        "batches": kept,
        "max_batches": max_batches,
        "loss": loss,
        "seed": seed,
    }
    plan = select(model, structure="entries", scope="global", targets=targets, **amount, **common)
    structured = []
    for name, entries in plan.items():
        matrix = entries.matrix_shape  # type: ignore[union-attr]
        if len(entries) >= columns * matrix[0] and columns < matrix[1]:
            structured.append(name)
    if not structured:
        return plan
    wide = select(
        model, structure="columns", budget=columns, targets=literally(structured), **common
    )
    return plan | wide
