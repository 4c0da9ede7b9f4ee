"""RoSA: low rank first, then entries beside it, where the gradient is large by then."""

from typing import Any

import torch
from torch import nn

from ...plan import ALL, Plan
from ...salience import scores, select
from ...scaling import scale_updates
from ...schedules import Once
from ..parts import adapters_of
from ..process import Scheduled
from ..recipe import recipe
from ..settings import check_count
from ..values import forget, literally, several, values_of


class Rosa(Scheduled):
    """Entries stand still until the warm-up is over; what `rosa` returns."""

    def __init__(self, plan: Plan, schedule: Once, names: list[str], warm: int):
        super().__init__(plan, schedule, origin=True)
        self._names, self._warm = names, warm

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "Rosa":
        super().attach(model, optimizer)
        scale_updates(model, dict.fromkeys(self._names, 0.0))
        return self

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; after the warm-up the entries move."""
        super().load_state_dict(state)
        if self._model is not None and self.steps >= self._warm:
            scale_updates(self.model, dict.fromkeys(self._names))

    def _turn(self, model: nn.Module) -> Any:
        if self.steps == self._warm:
            for values in values_of(model, self._names).values():
                forget(self._optimizer, values)  # the moments of those that stood still
        report = super()._turn(model)
        if report is not None:
            scale_updates(model, dict.fromkeys(self._names))
        return report


@recipe(
    "rosa", "RoSA, Nikdan et al. 2024, arXiv:2401.04679",
    {"density": 0.006, "warm": 64, "score": "fisher"}, follows="code", decay_to="origin",
)  # fmt: skip
def rosa(
    model: nn.Module,
    batches: Any,
    *,
    warm: int = 64,
    score: str = "fisher",
    density: float | None = None,
    budget: Any = None,
    loss: Any = None,
    targets: Any = None,
    seed: int = 0,
) -> Rosa:
    """LoRA for `warm` steps, then LoRA and the entries of each weight with the largest gradient

    The model has an adapter of PEFT; the entries are of the weights below it. score: "fisher", the
    mean square of the batches' gradients, as its code has it by default, or "gradient", |E g|. The
    gradients are taken after the warm-up, with the adapter as it is. Until then as many entries,
    drawn at random, stand still (their update is multiplied by 0), so that one optimiser serves
    both phases. Weight decay pulls entries to the pretrained weight. Returns a process.
    """
    if score not in ("fisher", "gradient"):
        raise ValueError(f"score: expected 'fisher' or 'gradient', got {score!r}")
    check_count("warm", warm)
    adapters = adapters_of(model, "A") + adapters_of(model, "B")
    amount = {"budget": budget} if density is None else {"density": density}
    below = targets
    if below is None:
        below = literally(sorted({_base_of(name) for name in adapters}))
    common: dict[str, Any] = {"structure": "entries", "seed": seed, **amount}
    plan = select(model, score="random", targets=below, **common)
    rated = "gradient" if score == "gradient" else squares_of_batches()
    kept = several(batches)

    def rule(model: nn.Module) -> Plan:
        return select(
            model, score=rated, batches=kept, loss=loss, targets=literally(plan), **common
        )

    whole = Plan(dict.fromkeys(adapters, ALL))
    return Rosa(plan | whole, Once(warm, rule, dropped="restore"), list(plan), warm)


def _base_of(adapter: str) -> str:
    """The weight that a factor of LoRA stands beside."""
    return adapter.rpartition(".lora_")[0] + ".base_layer.weight"


def squares_of_batches() -> scores.Score:
    """E g², a square a batch."""

    def update(acc: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        acc.addcmul_(gradient, gradient)

    return scores.Score(update, name="squares", linear=True)
