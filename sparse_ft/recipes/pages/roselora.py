"""RoseLoRA: LoRA whose factors become sparse by row and by column."""

from typing import Any

import torch
from torch import nn

from ...plan import ALL, Plan
from ...schedules.reselecting import AMOUNTS
from ..parts import adapters_of
from ..process import Looking
from ..recipe import recipe
from ..settings import check_count, check_part


class RoseLora(Looking):
    """Prunes the factors after every step; what `roselora` returns."""

    def __init__(self, plan: Plan, firsts: list[str], seconds: list[str], settings: dict[str, Any]):
        super().__init__(plan)
        self._firsts, self._seconds, self._settings = firsts, seconds, settings
        self._sensitivity: dict[str, torch.Tensor] = {}

    @property
    def share(self) -> float:
        """What stays of each row of A and each column of B, by now."""
        settings = self._settings
        begin, end = settings["begin"], settings["end"]
        done = min(1.0, max(0.0, (self.steps - begin) / max(1, end - begin)))
        return settings["density"] + (1 - settings["density"]) * AMOUNTS["cubic"](done)

    def state_dict(self) -> dict[str, Any]:
        """What to save: the steps, and the sensitivities, a tensor as large as each factor."""
        return {**super().state_dict(), "sensitivity": dict(self._sensitivity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; of steps alone sensitivities begin anew."""
        super().load_state_dict(state)
        self._sensitivity = dict(state.get("sensitivity", {}))

    @torch.no_grad()
    def _look(self, *_: Any) -> None:
        beta = self._settings["beta"]
        for name in (*self._firsts, *self._seconds):
            weight = self.model.get_parameter(name)
            if weight.grad is None:
                continue
            now = (weight * weight.grad).abs()
            before = self._sensitivity.get(name)
            self._sensitivity[name] = now if before is None else beta * before + (1 - beta) * now

    @torch.no_grad()
    def _turn(self, model: nn.Module) -> None:
        for name, dim in [(n, 1) for n in self._firsts] + [(n, 0) for n in self._seconds]:
            rated = self._sensitivity.get(name)
            if rated is None:
                continue
            weight = model.get_parameter(name)
            count = max(1, round(self.share * weight.size(dim)))
            if count < weight.size(dim):
                kept = rated.topk(count, dim=dim).indices
                mask = torch.zeros_like(weight).scatter_(dim, kept, 1.0)
                weight.mul_(mask)


@recipe(
    "roselora", "RoseLoRA, Wang et al. 2024, arXiv:2406.10777",
    {"density": 0.1, "total": 1000, "beta": 0.8}, follows="paper",
)  # fmt: skip
def roselora(
    model: nn.Module, batches: Any, *, density: float = 0.1, total: int = 1000, beta: float = 0.8
) -> RoseLora:
    """LoRA; after each step every row of A and column of B keeps its most sensitive entries alone

    The model has an adapter of PEFT. Sensitivity: the moving average of |W · g|, with `beta`. What
    stays falls from all to `density` by a cubic curve between a tenth and eight tenths of `total`
    steps. An entry that was zeroed may come back: its gradient goes on. The product of a row and a
    column that are sparse is sparse. Returns a process.
    """
    check_count("total", total)
    check_part("beta", beta)
    firsts, seconds = adapters_of(model, "A"), adapters_of(model, "B")
    settings = {"density": density, "beta": beta, "begin": total // 10, "end": total * 8 // 10}
    return RoseLora(Plan(dict.fromkeys(firsts + seconds, ALL)), firsts, seconds, settings)
