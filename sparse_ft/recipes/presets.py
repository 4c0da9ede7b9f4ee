"""Recipes that are one call of `sft.select`: a score, a structure, a budget, a scope.

A line each. What is asked beside (`density=`, `scope=`, `targets=`, …) goes to `sft.select`.
"""

import inspect
from typing import Any

from torch import nn

from ..plan import Plan
from ..salience import PerRow, Score, select
from ..salience.scores import grasp
from ..selection import as_block_size
from .parts import attention_and_rest
from .recipe import Recipe, recipe
from .scores import block_mean, change_of_fisher
from .settings import check_number
from .values import several

SELECT = tuple(inspect.signature(select).parameters)[1:]
PAGE = """{rule}

`sft.select` with the defaults below; every other argument of it is taken, too. Returns the plan.
{more}
"""


def preset(
    name: str,
    paper: str,
    rule: str,
    more: str = "",
    follows: str = "both",
    decay_to: str = "zero",
    **defaults: Any,
) -> Recipe:
    """A recipe that is one call of `sft.select` with `defaults`."""

    def make(model: nn.Module, batches: Any, **settings: Any) -> Plan:
        asked = {**settings, "batches": batches}
        score = settings.get("score")
        if isinstance(score, str) and score in OF_WEIGHTS:
            asked.pop("batches")
        return select(model, **asked)

    make.__doc__ = PAGE.format(rule=rule, more=more)
    register = recipe(name, paper, defaults, follows=follows, decay_to=decay_to, settings=SELECT)
    return register(make)


OF_WEIGHTS = ("random", "magnitude", "magnitude_bottom", "principal")
SPEFT = "SPEFT, Liu et al. 2024, arXiv:2412.13488"
ENTRIES: dict[str, Any] = {"structure": "entries", "density": 0.01}
GLOBAL: dict[str, Any] = {**ENTRIES, "scope": "global"}

preset(
    "fish", "FISH mask, Sung et al. 2021, arXiv:2111.09839",
    "the entries with the largest E g² over single examples, in all weights together",
    "By the labels, as its code does; score='fisher_expected' takes the model's own, the paper's"
    " formula.", follows="code",
    score="fisher", structure="entries", scope="global", density=0.005,
)  # fmt: skip
preset(
    "gps", "GPS, Zhang et al. 2024, arXiv:2312.10136",
    "the entry of each output row with the largest |E g|",
    "The paper ranks by a contrastive loss of the features, so that a fresh head does not count;"
    " pass it as loss=. Its code multiplies a dense gradient by a mask and saves no memory.",
    score="gradient", budget=PerRow(1),
)  # fmt: skip
preset(
    "neuroada", "NeuroAda, Zhang et al. 2025, arXiv:2510.18940",
    "the entry of each output row with the largest |W|; budget=sft.PerRow(k) for k of them",
    decay_to="origin", score="magnitude", budget=PerRow(1),
)  # fmt: skip
preset(
    "sift", "SIFT, Song et al. 2023, arXiv:2312.11875",
    "the entries of each weight with the largest |g| of the first batch",
    score="gradient", structure="entries", density=0.05, max_batches=1,
)  # fmt: skip
preset("speft_random", SPEFT, "entries drawn at random, in all weights together",
       score="random", **GLOBAL)  # fmt: skip
preset("speft_magnitude", SPEFT, "the entries with the largest |W|, in all weights together",
       score="magnitude", **GLOBAL)  # fmt: skip
preset("speft_gradient", SPEFT, "the entries with the largest |E g|, in all weights together",
       score="gradient", **GLOBAL)  # fmt: skip
preset("speft_snip", SPEFT, "the entries with the largest |W · E g|, in all weights together",
       score="saliency", **GLOBAL)  # fmt: skip
preset("speft_force", SPEFT, "the entries with the largest −W · E g, signed, in all weights",
       score="snip", **GLOBAL)  # fmt: skip
preset("speft_taylor", SPEFT, "the entries with the largest (W · g)², in all weights together",
       score="taylor", **GLOBAL)  # fmt: skip
preset("speft_fisher", SPEFT, "the entries with the largest E g², in all weights together",
       score="fisher", **GLOBAL)  # fmt: skip
preset("speft_synflow", SPEFT, "the entries with the largest |W · ∂R/∂W|, R = 1ᵀ∏|W|·1",
       score="synflow", **GLOBAL)  # fmt: skip
preset(
    "speft_grasp", SPEFT, "the entries with the largest −W · (H g), in all weights together",
    "Its code has the other sign: score=sft.scores.grasp(as_released=True).", follows="paper",
    score=grasp(), **GLOBAL,
)  # fmt: skip
preset(
    "tr_pts", "TR-PTS, Luo et al. 2025, arXiv:2507.22872",
    "the entries of each weight with the largest E g² over single examples",
    "The choice of tokens that the paper adds in the forward is not part of it.",
    score="fisher", **ENTRIES,
)  # fmt: skip
preset(
    "shira", "SHiRA, Bhardwaj et al. 2024, arXiv:2406.13175",
    "entries of each weight drawn at random; score= 'magnitude', 'gradient', 'saliency' (SNIP)",
    decay_to="origin", score="random", **ENTRIES,
)  # fmt: skip
preset(
    "paca", "PaCA, Woo et al. 2025, arXiv:2503.01905",
    "as many input columns of each weight as LoRA has ranks, drawn at random",
    "Inputs of any number of dimensions; `sft.revert` merges, exactly.",
    score="random", structure="columns", budget=8,
)  # fmt: skip
preset(
    "super_tuning", "Super-Tuning, arXiv:2607.09287",
    "the entries of each weight with the largest |W|; score='magnitude_bottom' the smallest",
    decay_to="origin", score="magnitude", **ENTRIES,
)  # fmt: skip
preset(
    "gradient_columns", "the default of sft.select",
    "the input columns of each weight with the largest Σ |E g|",
    score="gradient", structure="columns", density=0.01,
)  # fmt: skip
preset(
    "activation_columns", "SMT's channels, He et al. 2025, arXiv:2405.15525",
    "the input columns of each weight whose inputs are the largest, E ‖x_j‖",
    score="activation", structure="columns", density=0.01,
)  # fmt: skip


@recipe(
    "smt", "SMT, He et al. 2025, arXiv:2405.15525",
    {"density": 0.01, "block_size": 256, "score": "mean_abs"},
    settings=SELECT, follows="both",
)  # fmt: skip
def smt(
    model: nn.Module,
    batches: Any,
    *,
    score: str | Score = "mean_abs",
    block_size: int | tuple[int, int] = 256,
    density: float | None = None,
    density_mlp: float | None = None,
    **settings: Any,
) -> Plan:
    """blocks of 256 × 256 with the largest |mean of E g|; attention and the rest have budgets each

    score: "mean_abs": |the signed mean of E g in a block|; "abs_mean": the mean of E |g|. Of blocks
    at a ragged edge the mean is that of their own entries; a weight that is smaller than a block is
    one. The best of all attention's weights together, and of all others'. density_mlp: the budget
    of the others, by default `density`.

    The paper takes gradients over 100 steps of full fine-tuning; here they are those of `batches`
    on the weights as they are: train first (`sft.Once(100, …)`), or pass as many batches. Returns
    the plan.
    """
    size = as_block_size(block_size)
    if score in ("mean_abs", "abs_mean"):
        score = block_mean(size, of_sizes=score == "abs_mean")
    groups = attention_and_rest(model, settings.pop("targets", None))
    shares = {"attention": density, "rest": density if density_mlp is None else density_mlp}
    plan = Plan({})
    for label, names in groups.items():
        if not names:
            continue
        budget: dict[str, Any] = {"density": shares[label]} if shares[label] is not None else {}
        plan = plan | select(
            model, batches=batches, score=score, structure="blocks", combine="abs_of_sum",
            block_size=size, scope="global", targets=names, **budget, **settings,
        )  # fmt: skip
    return plan


@recipe(
    "fishertune", "FisherTune, Zhao et al. 2025, arXiv:2503.17940",
    {"density": 0.01, "weight": 1.0}, settings=SELECT, follows="description",
)  # fmt: skip
def fishertune(
    model: nn.Module,
    batches: Any,
    *,
    shifted: Any = None,
    weight: float = 1.0,
    density: float | None = None,
    **settings: Any,
) -> Plan:
    """the entries of each weight with the largest Fisher information, and change of it by domain

    E g² on `batches` plus weight · |E g² on `batches` − E g² on `shifted`|, shifted being the same
    examples in another style or domain; without them it is TR-PTS. The paper smooths the estimate
    over a run and anneals the share; `sft.Every(n, rule, amount="linear", total=…)` with this rule
    does. Returns the plan.
    """
    check_number("weight", weight)
    settings = {"structure": "entries", "scope": "layer", **settings}
    if shifted is None:
        return select(model, batches=batches, score="fisher", density=density, **settings)
    kept = several(batches, settings.pop("max_batches", None))
    shifted = several(shifted)
    score = change_of_fisher(model, kept, shifted, weight, settings)
    settings.pop("loss", None)
    return select(model, score=score, density=density, **settings)
