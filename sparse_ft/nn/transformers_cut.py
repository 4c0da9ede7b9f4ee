"""What transformers' own tensor parallel does beside DTensors, by its plan."""

from collections.abc import Iterable, Mapping
from typing import Any

# Styles of its plan, in which selected entries would not get their gradient, and why.
WHY = {
    "replicated_with_grad_allreduce": (
        "each process has the gradient of its own heads, and transformers sums those of whole"
        " parameters alone"
    ),
    "moe_tp_experts": "its experts compute on each process's own part of it, not on a DTensor",
    "grouped_gemm": "each process has some of its experts alone",
    "ep_dispatch_experts": "each process has some of its experts alone",
}


def refuse_cut_by_transformers(model: Any, names: Iterable[str]) -> None:
    """Raise ValueError for a parameter of which selected entries cannot train where transformers
    has cut `model`. names: of the selections.
    """
    size = getattr(model, "tp_size", None)
    if not isinstance(size, int) or size < 2:
        return
    plans = (getattr(model, "ep_plan", None), getattr(model, "tp_plan", None))
    styles = {
        key: style for plan in plans if isinstance(plan, Mapping) for key, style in plan.items()
    }
    for name in names:
        general = _without_numbers(name)
        for rule in (general, general.rpartition(".")[0]):  # the parameter's, its module's
            why = WHY.get(styles.get(rule, ""))
            if why is not None:
                raise ValueError(
                    f"plan: {name!r}: under transformers' tensor parallel {why}; train it whole"
                    " ('all') or leave it out"
                )


def _without_numbers(name: str) -> str:
    """A parameter's name as plans have it: `*` for the number of a layer."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
