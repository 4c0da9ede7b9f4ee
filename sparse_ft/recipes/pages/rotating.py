"""LISA, BAdam and IST: a few layers train for some steps, then others."""

from typing import Any

import torch
from torch import nn

from ...plan import ALL, Plan
from ...restoring import restore
from ...salience import select
from ...salience.losses import checked
from ...salience.recompute import members_of_lists
from ...schedules import Rotate
from ..parts import blocks_of, check_blocks
from ..process import Process, Scheduled
from ..recipe import recipe
from ..settings import check_count, check_lr, check_part
from ..values import cycled, resume, saved, several


def whole_blocks(model: nn.Module) -> Plan:
    """All parameters of the model's blocks."""
    return Plan({name: ALL for names in blocks_of(model).values() for name in names})


@recipe("lisa", "LISA, Pan et al. 2024, arXiv:2403.17919", {"layers": 2, "every": 20})
def lisa(
    model: nn.Module, batches: Any, *, layers: int = 2, every: int = 20, seed: int = 0
) -> Scheduled:
    """all of `layers` blocks drawn anew every `every` steps; what is in no block always trains

    Embeddings and head are what always trains. Gradients and optimiser state of blocks out of turn
    are freed (one public callback never frees the state), so their moments begin anew. Returns a
    process.
    """
    check_blocks("layers", layers, blocks_of(model))
    check_count("every", every)
    blocks = whole_blocks(model)
    rest = {name: ALL for name, _ in model.named_parameters() if name not in blocks}
    return Scheduled(blocks | rest, Rotate(layers, every, seed=seed))


@recipe("badam", "BAdam, Luo et al. 2024, arXiv:2404.02827", {"every": 100})
def badam(
    model: nn.Module, batches: Any, *, every: int = 100, order: str = "descending", seed: int = 0
) -> Scheduled:
    """all of one block in turn, the last first, for `every` steps each

    order: "descending", "ascending" or "random". Its moments begin anew at each turn, as in its
    code; what is in no block stays frozen (`also=` trains it all the time). Returns a process.
    """
    return Scheduled(whole_blocks(model), Rotate(1, every, order=order, seed=seed))


class Ist(Process):
    """Layers train in turns that their importance has drawn; what `ist` returns.

    importance: [layers], what they are drawn by. active: the numbers of those that train.
    """

    def __init__(self, plan: Plan, layers: dict[str, list[str]], batches: Any, loss: Any,
                 settings: dict[str, Any]):  # fmt: skip
        super().__init__(plan, origin=True)
        self._layers = {layer: [n for n in names if n in plan] for layer, names in layers.items()}
        self._batches, self._loss = cycled(batches), checked(loss)
        self._settings = settings
        self.importance = torch.zeros(len(self._layers), dtype=torch.float64, device="cpu")
        self._generator = torch.Generator().manual_seed(settings["seed"])
        self.active: list[int] = []
        self._rotate: _Given | None = None

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "Ist":
        super().attach(model, optimizer)
        self.active = self._draw()
        self._rotate = _Given(self, self._patterns(model))
        self._rotate.attach(model, optimizer)
        return self

    def state_dict(self) -> dict[str, Any]:
        """What to save: the steps, the importance that was learnt, whose turn it is, the lots."""
        return {
            **super().state_dict(),
            "importance": self.importance.tolist(),
            "active": list(self.active),
            "lots": saved(self._generator),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; without an importance every layer is as likely as the others."""
        super().load_state_dict(state)
        known = state.get("importance")
        if known is not None:
            self.importance = torch.tensor(known, dtype=torch.float64, device="cpu")
        if "lots" in state:
            resume(self._generator, state["lots"])
        if "active" in state:
            self.active = list(state["active"])
            if self._rotate is not None:
                self._rotate._set()

    def _patterns(self, model: nn.Module) -> dict[str, list[str]]:
        members = members_of_lists(model)
        return {layer: [f"{layer}.*"] for layer in members if self._layers.get(layer)}

    def _draw(self) -> list[int]:
        """Layers without replacement, by the softmax of their importance."""
        chances = self.importance.softmax(0)
        count = min(self._settings["layers"], len(chances))
        drawn = torch.multinomial(chances, count, generator=self._generator)
        return sorted(drawn.tolist())

    def _turn(self, model: nn.Module) -> Any:
        if self.steps % self._settings["probe"] == 0:
            self._judge(model)
        if self.steps % self._settings["every"]:
            return None
        self.active = self._draw()
        assert self._rotate is not None
        self._rotate._set()
        return self.active

    def _judge(self, model: nn.Module) -> None:
        """Weaken what all layers but a drawn few have learnt; these earn how well that goes."""
        batch = next(self._batches)
        draws, rewards = [], []
        names = list(self._layers.values())
        is_training = model.training
        model.eval()
        try:
            for _ in range(self._settings["candidates"]):
                drawn = self._draw()
                weak = {n: self._settings["beta"] for at, group in enumerate(names)
                        if at not in drawn for n in group}  # fmt: skip
                restore(model, weak)
                try:
                    with torch.enable_grad():
                        loss = float(self._loss(model, batch).detach())
                finally:
                    restore(model, dict.fromkeys(weak, 1.0))
                draws.append(drawn)
                rewards.append(torch.tensor(-loss, dtype=torch.float64, device="cpu").exp())
        finally:
            model.train(is_training)
        mean = torch.stack(rewards).mean()
        for drawn, reward in zip(draws, rewards):
            self.importance[drawn] += self._settings["rate"] * (reward - mean)


class _Given(Rotate):
    """A rotation whose turns another one decides."""

    def __init__(self, owner: Ist, units: dict[str, list[str]]):
        super().__init__(1, 1, units=units)
        self._owner = owner

    @property
    def active(self) -> list[str]:
        labels = list(self._owner._layers)
        return [labels[number] for number in self._owner.active]


@recipe(
    "ist", "IST, Yao et al. 2024, arXiv:2410.11772",
    {"layers": 2, "every": 10, "probe": 10, "candidates": 3, "beta": 0.25, "rate": 1.0,
     "density": 0.01}, follows="paper",
)  # fmt: skip
def ist(
    model: nn.Module,
    batches: Any,
    *,
    layers: int = 2,
    every: int = 10,
    probe: int = 10,
    candidates: int = 3,
    beta: float = 0.25,
    rate: float = 1.0,
    density: float | None = None,
    budget: Any = None,
    structure: str = "columns",
    targets: Any = None,
    loss: Any = None,
    seed: int = 0,
) -> Ist:
    """`layers` layers of a selection, drawn every `every` steps by an importance that is learnt

    Every `probe` steps so many layers are drawn `candidates` times, what the others have learnt is
    weakened to the share `beta` (`sft.restore`, bit for bit back), and the drawn ones' importance
    changes by rate · (e^(−loss) − its mean). Layers are drawn by the softmax of it. The paper
    weakens the outputs of adapters; here the learnt difference itself is. Its repository has no
    code. What each layer trains is chosen by `density`, `structure` and gradients. Returns a
    process.
    """
    kept = several(batches)
    blocks = blocks_of(model)
    check_blocks("layers", layers, blocks)
    check_count("every", every)
    check_count("probe", probe)
    check_count("candidates", candidates)
    check_part("beta", beta)
    check_lr("rate", rate)
    plan = select(
        model, density=density, budget=budget, structure=structure, score="gradient",
        targets=targets, batches=kept, loss=loss, seed=seed,
    )  # fmt: skip
    inside = {name for names in blocks.values() for name in names}
    plan = Plan({name: what for name, what in plan.items() if name in inside}, plan.left)
    settings = {"layers": layers, "every": every, "probe": probe, "candidates": candidates}
    settings |= {"beta": beta, "rate": rate, "seed": seed}  # type: ignore[dict-item]
    return Ist(plan, blocks, kept, loss, settings)
