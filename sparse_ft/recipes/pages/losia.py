"""LoSiA: a sub-net of every matrix trains, and moves to another place layer by layer."""

from typing import Any

from torch import nn

from ...plan import Plan
from ...reselection import reselect
from ...salience import scores, select
from ...scaling import scale_updates
from ..parts import blocks_of
from ..process import Process
from ..recipe import recipe
from ..scores import Subnet
from ..settings import check_count, check_count_or_none, check_part, check_share, check_whole
from ..values import cycled, literally, several


class Losia(Process):
    """Moves the sub-nets of one layer every period; what `losia` returns."""

    def __init__(
        self, plan: Plan, layers: list[list[str]], batches: Any, loss: Any, settings: dict[str, Any]
    ):
        super().__init__(plan)
        self._layers = layers
        self._batches, self._loss = cycled(batches), loss
        self._every, self._warm = settings["every"], settings["warm"]
        self._share, self._seen = settings["share"], settings["seen"]
        self._total, self._beta = settings["total"], settings["beta"]
        self._warming: dict[str, int] = {}  # weight: the step it was moved at

    def state_dict(self) -> dict[str, Any]:
        """What to save: the steps, and what is warming up."""
        return {**super().state_dict(), "warming": dict(self._warming)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; of steps alone nothing is warming up."""
        super().load_state_dict(state)
        self._warming = dict(state.get("warming", {}))
        if self._model is not None:
            self._warm_up(self.model)

    def _turn(self, model: nn.Module) -> Any:
        report = None
        is_over = self._total is not None and self.steps > self._total
        if not is_over and self.steps % self._every == 0:
            number = self.steps // self._every - 1
            report = self._move(model, self._layers[number % len(self._layers)])
        self._warm_up(model)
        return report

    def _move(self, model: nn.Module, names: list[str]) -> Any:
        batches = [next(self._batches) for _ in range(self._seen)]
        plan = located(model, literally(names), batches, self._loss, self._share, self._beta)
        report = reselect(model, self._optimizer, plan)
        self._warming |= dict.fromkeys(names, self.steps)
        return report

    def _warm_up(self, model: nn.Module) -> None:
        """The learning rate of what was moved rises from 0 again."""
        for name, begin in list(self._warming.items()):
            share = (self.steps - begin + 1) / (self._warm + 1)
            scale_updates(model, {name: share if share < 1 else None})
            if share >= 1:
                del self._warming[name]


def located(
    model: nn.Module, targets: Any, batches: Any, loss: Any, share: float, beta: float
) -> Plan:
    """The sub-net of every target."""
    return select(
        model, budget=Subnet(share), structure="entries", score=scores.sensitivity(beta, beta),
        targets=targets, batches=batches, loss=loss,
    )  # fmt: skip


@recipe(
    "losia", "LoSiA, Wang et al. 2025, arXiv:2507.04487",
    {"share": 1 / 8, "every": 100, "warm": 10, "seen": 4, "beta": 0.85}, follows="paper",
)  # fmt: skip
def losia(
    model: nn.Module,
    batches: Any,
    *,
    share: float = 1 / 8,
    every: int = 100,
    warm: int = 10,
    seen: int = 4,
    beta: float = 0.85,
    total: int | None = None,
    targets: Any = None,
    loss: Any = None,
    density: float | None = None,
) -> Losia:
    """where an eighth of the rows and an eighth of the columns cross; one layer moves every period

    By sensitivity × uncertainty (`sft.scores.sensitivity`, both averages with `beta`), summed
    over rows, then over columns of these, or the other way about, whichever is worth more. Every
    `every` steps the next layer's sub-nets are found anew on `seen` batches, and their learning
    rate rises from 0 over `warm` steps. density: share² of each matrix, instead of share. The
    gradient is of the sub-net alone, biases stay frozen. Returns a process.
    """
    if density is not None:
        share = density**0.5
    check_share("share", share)
    check_count("every", every)
    check_whole("warm", warm)
    check_count("seen", seen)
    check_part("beta", beta)
    check_count_or_none("total", total)
    kept = several(batches)
    plan = located(model, targets, kept, loss, share, beta)
    layers = [[n for n in names if n in plan] for names in blocks_of(model).values()]
    inside = {name for names in layers for name in names}
    layers += [[name] for name in plan if name not in inside]
    settings = {"every": every, "warm": warm, "share": share, "seen": seen, "beta": beta}
    layers = [names for names in layers if names]
    return Losia(plan, layers, kept, loss, {**settings, "total": total})
