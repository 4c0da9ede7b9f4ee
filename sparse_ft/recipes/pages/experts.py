"""ESFT and CEFT: the experts that a task's tokens go to."""

from typing import Any

from torch import nn

from ...plan import Plan
from ...salience import layer_scores
from ...units import units
from ..parts import routers_of
from ..recipe import recipe
from ..settings import check_share
from ..values import NO_BATCH, several
from .full_run import after_training


def chosen_experts(model: nn.Module, batches: list[Any], share: float, gates: bool) -> Plan:
    """In each layer the fewest experts whose shares add up to `share`, whole."""
    worth = layer_scores.routing(model, batches, gates=gates)
    by_layer: dict[str, list[tuple[float, int]]] = {}
    for name, each in worth.items():
        layer, _, number = name.rpartition(".")
        by_layer.setdefault(layer, []).append((each, int(number)))
    wanted = {}
    for layer, experts in by_layer.items():
        total = 0.0
        taken: set[int] = set()
        for each, expert in sorted(experts, key=lambda pair: (-pair[0], pair[1])):
            taken.add(expert)
            total += each
            if total >= share:
                break
        wanted[layer] = taken
    found = units(model, batches[0])
    mine = []
    for unit in found.iterate("experts"):
        site = unit.site.removesuffix(".experts")
        if unit.number in wanted.get(site, ()):
            mine.append(unit)
    return found.plan(mine)


@recipe(
    "esft", "ESFT, Wang et al. 2024, arXiv:2407.01906", {"share": 0.2, "gates": False},
    follows="paper",
)  # fmt: skip
def esft(
    model: nn.Module,
    batches: Any,
    *,
    share: float = 0.2,
    gates: bool = False,
    max_batches: int | None = None,
) -> Plan:
    """of each layer the fewest experts that receive the share `share` of its tokens' choices, whole

    gates: by the mean gate instead of the count (ESFT-Gate; counting is ESFT-Token). Shares are of
    the experts of one layer (the released code divides by all layers). Experts in one 3-D weight,
    too. Returns the plan.
    """
    check_share("share", share)
    kept = _kept(batches, max_batches)
    return chosen_experts(model, kept, share, gates)


@recipe(
    "ceft", "CEFT (routers first, then experts by how often they are chosen)",
    {"share": 0.2, "steps": 100, "lr": 1e-3}, follows="description",
)  # fmt: skip
def ceft(
    model: nn.Module,
    batches: Any,
    *,
    share: float = 0.2,
    steps: int = 100,
    lr: float = 1e-3,
    loss: Any = None,
    max_batches: int | None = None,
) -> Plan:
    """the routers train first, here; then ESFT's rule by counts with the routers as they are now

    **The routers are trained** by this call, `steps` steps of AdamW at `lr` over the batches, and
    stay so; the experts that are chosen train afterwards. Returns the plan of the experts.
    """
    check_share("share", share)
    kept = _kept(batches, max_batches)
    return after_training(
        model, routers_of(model), kept, lambda before: chosen_experts(model, kept, share, False),
        loss=loss, steps=steps, lr=lr, rewind=False,
    )  # fmt: skip


def _kept(batches: Any, most: int | None) -> list[Any]:
    kept = several(batches, most)
    if kept is None:
        raise ValueError("batches: the method counts where tokens go, got None")
    if not kept:
        raise ValueError(NO_BATCH)
    return kept
