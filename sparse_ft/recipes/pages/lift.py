"""LIFT: the principal weights train, found anew while training goes on."""

from typing import Any

from torch import nn

from ...plan import Plan
from ...salience import LikeLora, scores, select
from ...schedules import Every
from ..process import Scheduled
from ..recipe import recipe
from ..settings import check_count, check_count_or_none, check_whole
from ..values import literally


@recipe(
    "lift", "LIFT, Liu et al. 2025, arXiv:2506.00772",
    {"budget": LikeLora(8), "filter_rank": 32, "every": 200}, follows="paper",
)  # fmt: skip
def lift(
    model: nn.Module,
    batches: Any,
    *,
    every: int = 200,
    filter_rank: int = 32,
    iterations: int = 4,
    total: int | None = None,
    density: float | None = None,
    budget: Any = None,
    targets: Any = None,
    seed: int = 0,
) -> Scheduled:
    """the entries where |W_r| is the largest, W_r the best rank-r approximation; anew as W changes

    filter_rank: r, well under the full rank. budget: (rows + columns) · rank entries of a weight,
    as LoRA of that rank has. every: steps from choice to choice; `iterations` of the randomised SVD
    as in `sft.scores.principal`. total: the last step that may change anything.

    The choice is made of the weights after a step, every entry has its own age (its code has one a
    tensor, so that entries that join move too far), and weight decay acts on the weights (its code
    decays a copy). The weights as they are trained are what is looked at, and entries that leave
    keep what they learnt. Returns a process.
    """
    check_count("every", every)
    check_count("filter_rank", filter_rank)
    check_whole("iterations", iterations)
    check_count_or_none("total", total)
    amount = {"budget": budget} if density is None else {"density": density}

    score: Any = scores.principal(filter_rank, iterations)

    def rule(model: nn.Module, names: Any = targets) -> Plan:
        return select(model, structure="entries", score=score, targets=names, seed=seed, **amount)

    plan = rule(model)
    again = literally(plan)
    return Scheduled(plan, Every(every, lambda model: rule(model, again), total=total))
