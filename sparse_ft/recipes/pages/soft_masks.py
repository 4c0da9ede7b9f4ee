"""SPIDER, CoFiTune and RoAST: entries train more or less, by a factor each."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...nn import origin_of
from ...places import matrix_shape
from ...plan import Plan
from ...salience import Score, scores, select
from ...salience.recompute import members_of_lists
from ...salience.scores.outputs import logits_of, outputs_of
from ...scaling import scale_updates
from ...selection import Rows
from ..parts import blocks_of, is_attention, weights_of
from ..process import Looking, Process
from ..recipe import recipe
from ..scores import scores_of
from ..settings import check_count, check_lr, check_number, check_part
from ..values import literally, resume, saved, several, values_of

Matrices = dict[str, torch.Tensor]


def every_row(model: nn.Module, names: list[str]) -> Plan:
    """Whole weights, as selections, so that each entry may have a factor."""
    shapes = {name: matrix_shape(model, name) for name in names}
    return Plan({name: Rows(torch.arange(rows, device="cpu")).on((rows, columns))
                 for name, (rows, columns) in shapes.items()})  # fmt: skip


class Spider(Process):
    """Pulls every entry towards its origin after each step; what `spider` returns."""

    def __init__(self, plan: Plan, masks: Matrices):
        super().__init__(plan, origin=True)
        self._names, self._masks = list(plan), masks

    @torch.no_grad()
    def _turn(self, model: nn.Module) -> None:
        for name, values in values_of(model, self._names).items():
            origin: Any = origin_of(values)
            mask = self._masks[name].to(values)
            before = origin.to(values.dtype)
            values.copy_(before * (1 - mask) + values * mask)


@recipe(
    "spider", "SPIDER (Learn from Downstream and Be Yourself), Huang et al. 2024, arXiv:2411.10928",
    {}, follows="paper",
)  # fmt: skip
def spider(
    model: nn.Module,
    batches: Any,
    *,
    targets: Any = None,
    loss: Any = None,
    max_batches: int | None = None,
    density: float | None = None,
    seed: int = 0,
) -> Spider:
    """p ← p_0 (1 − m) + p m after every step, m the ratio of the ranks of |E g| and |W|, at most 1

    A soft mask: entries whose gradient ranks at least as high as their pretrained size are free.
    Ranks are of sizes within each weight (its code ranks signed numbers). All entries of the
    targets train, at full cost; density: those with the largest ratios alone. Returns a process.
    """
    kept = several(batches, max_batches)
    found = scores_of(
        model, scores.ratio(), kept, loss=loss, targets=targets, max_batches=max_batches
    )
    if density is None:
        plan = every_row(model, list(found))
    else:
        plan = select(model, structure="entries", density=density, score=found, seed=seed,
                      targets=literally(found))  # fmt: skip
    return Spider(plan, {name: plan[name].gather(found[name]) for name in plan})  # type: ignore[union-attr]


class CoFiTune(Process):
    """Scales the update of what general knowledge needs; what `cofitune` returns."""

    def __init__(self, plan: Plan, importance: Matrices):
        super().__init__(plan)
        self.importance = importance

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> "CoFiTune":
        super().attach(model, optimizer)
        factors = {name: 1 - one.clamp(0, 1) for name, one in self.importance.items()}
        scale_updates(model, factors)  # type: ignore[arg-type]
        return self


def importance_by_dropout(rate: float) -> Score:
    """E |g| of KL(first ‖ second), of two passes with dropout of `rate` after every block."""

    def objectives(model: nn.Module, batch: Any, seed: int) -> Iterator[torch.Tensor]:
        hooks = [block.register_forward_hook(_drop(rate))
                 for block in members_of_lists(model).values()]  # fmt: skip
        try:
            torch.manual_seed(seed)
            first = logits_of(outputs_of(model, batch)).log_softmax(-1)
            second = logits_of(outputs_of(model, batch)).log_softmax(-1)
        finally:
            for hook in hooks:
                hook.remove()
        yield F.kl_div(second, first, log_target=True, reduction="batchmean")

    def update(acc: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
        acc.add_(gradient.abs())

    return Score(update, name="importance", objectives=objectives)


def _drop(rate: float) -> Any:
    def hook(module: nn.Module, inputs: tuple, output: Any) -> Any:
        if isinstance(output, tuple):
            return (F.dropout(output[0], rate, training=True), *output[1:])
        return F.dropout(output, rate, training=True)

    return hook


def normalised(score: torch.Tensor) -> torch.Tensor:
    """|tanh| of the standardised score, in [0, 1)."""
    return ((score - score.mean()) / score.std().clamp_min(1e-30)).tanh().abs()


@recipe(
    "cofitune", "CoFiTune, Zhang et al. 2024, arXiv:2404.10306",
    {"begin": 0.25, "end": 0.5, "dropout": 0.003}, follows="paper",
)  # fmt: skip
def cofitune(
    model: nn.Module,
    batches: Any,
    *,
    begin: float = 0.25,
    end: float = 0.5,
    dropout: float = 0.003,
    targets: Any = None,
    max_batches: int | None = None,
) -> CoFiTune:
    """the feed-forward weights of the blocks from a quarter to a half, by 1 − importance

    The factor is on the update: a gradient that is scaled moves a weight under Adam as far as one
    that is not. Importance: E |g| of the divergence between two passes with inserted dropout of
    0.003, on `batches` of general text (their labels are not looked at), standardised within each
    weight, |tanh|. begin, end: shares of the blocks. Returns a process.
    """
    check_part("begin", begin)
    check_part("end", end)
    check_part("dropout", dropout)
    if not begin < end:
        raise ValueError(f"begin: expected less than end={end!r}, got {begin!r}")
    blocks = list(blocks_of(model))
    first, last = round(begin * len(blocks)), max(round(begin * len(blocks)) + 1,
                                                 round(end * len(blocks)))  # fmt: skip
    inside = tuple(f"{block}." for block in blocks[first:last])
    names = [n for n in weights_of(model, targets) if n.startswith(inside) and not is_attention(n)]
    if not names:
        raise ValueError(f"begin: no feed-forward weight lies between {begin!r} and {end!r}")
    kept = several(batches, max_batches)
    found = scores_of(
        model, importance_by_dropout(dropout), kept, targets=literally(names),
        max_batches=max_batches,
    )  # fmt: skip
    importance = {name: normalised(score) for name, score in found.items()}
    return CoFiTune(every_row(model, names), importance)


class Roast(Looking):
    """Draws which entries move, epoch by epoch; what `roast` returns."""

    def __init__(self, plan: Plan, epoch: int, alpha: float, beta: float, seed: int):
        super().__init__(plan)
        self._names, self._epoch = list(plan), epoch
        self._alpha, self._beta = alpha, beta
        self._generator = torch.Generator().manual_seed(seed)
        self._fisher: Matrices = {}
        self._factors: Matrices = {}

    @torch.no_grad()
    def _look(self, *_: Any) -> None:
        """Add this step's squares; the first one of an epoch counts like the others."""
        for name, values in values_of(self.model, self._names).items():
            if values.grad is not None:
                square = values.grad.square()
                known = self._fisher.get(name)
                self._fisher[name] = square if known is None else known.add_(square)

    def _turn(self, model: nn.Module) -> Any:
        if self.steps % self._epoch:
            return None
        self._factors = {name: self._drawn(fisher) for name, fisher in self._fisher.items()}
        self._fisher = {}
        scale_updates(model, self._factors)  # type: ignore[arg-type]
        return self._factors

    def state_dict(self) -> dict[str, Any]:
        """What to save: the steps, the lots, the masks of this epoch and the squares of it so far,
        two tensors as large as each weight.
        """
        return {
            **super().state_dict(),
            "lots": saved(self._generator),
            "factors": dict(self._factors),
            "fisher": dict(self._fisher),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; of steps alone there is no mask until the epoch ends."""
        super().load_state_dict(state)
        if "lots" not in state:
            if self.steps >= self._epoch:
                warnings.warn(
                    "roast: the masks of this epoch were not saved, only its steps: until it ends"
                    " every entry moves; save roast.state_dict() whole",
                    stacklevel=2,
                )
            return
        resume(self._generator, state["lots"])
        self._factors = dict(state["factors"])
        self._fisher = {name: one.clone() for name, one in state["fisher"].items()}
        if self._model is not None and self._factors:
            scale_updates(self.model, self._factors)  # type: ignore[arg-type]

    def chances(self, fisher: torch.Tensor) -> torch.Tensor:
        """σ(2β (rank − α)), rank in [0, 1] within the weight."""
        order = fisher.flatten().argsort(stable=True)
        rank = torch.empty(order.numel(), dtype=torch.float64, device="cpu")
        rank[order.cpu()] = torch.arange(order.numel(), dtype=torch.float64, device="cpu")
        rank /= max(1, order.numel() - 1)
        return torch.sigmoid(2 * self._beta * (rank - self._alpha)).view(fisher.shape)

    def _drawn(self, fisher: torch.Tensor) -> torch.Tensor:
        """0, or one over the chance of it, for each entry."""
        chance = self.chances(fisher)
        lots = torch.rand(
            chance.shape, generator=self._generator, dtype=torch.float64, device="cpu"
        )
        return torch.where(lots < chance, 1 / chance, 0.0).float()


@recipe(
    "roast", "RoAST, Kim et al. 2023, arXiv:2312.04032",
    {"epoch": 100, "alpha": 0.6, "beta": 5.0}, follows="paper",
)  # fmt: skip
def roast(
    model: nn.Module,
    batches: Any,
    *,
    epoch: int = 100,
    alpha: float = 0.6,
    beta: float = 5.0,
    targets: Any = None,
    seed: int = 0,
) -> Roast:
    """whole weights; from each epoch's Fisher information entries are drawn whose update counts, /p

    p = σ(2β (rank − α)), rank in [0, 1] of Σ g² over all steps of the epoch within the weight; the
    update of an entry that is drawn counts 1/p times, that of another not at all, for the next
    epoch of `epoch` steps. On the gradient 1/p would do nothing under Adam. The first epoch has no
    mask. Costs what full fine-tuning costs, and two numbers an entry more. Returns a process.
    """
    check_count("epoch", epoch)
    check_number("alpha", alpha)
    check_lr("beta", beta)
    return Roast(every_row(model, weights_of(model, targets)), epoch, alpha, beta, seed)
