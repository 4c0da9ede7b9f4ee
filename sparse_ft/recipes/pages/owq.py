"""OWQ's weak-column tuning: full precision where the output feels the rounding most."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...plan import Plan
from ...salience import scores, select
from ..recipe import recipe

SETTINGS = ("density", "targets", "loss", "scope", "seed", "max_batches", "floor", "cap")


@recipe(
    "owq", "OWQ, Lee et al. 2024, arXiv:2306.02272", {"density": 0.01, "quantised": 4},
    follows="paper", settings=SETTINGS,
)  # fmt: skip
def owq(
    model: nn.Module,
    batches: Any,
    *,
    quantised: Any = 4,
    original: Mapping[str, torch.Tensor] | None = None,
    **settings: Any,
) -> Plan:
    """the input columns of the largest (XXᵀ)_jj ‖W_:j − Ŵ_:j‖², trained over a quantised base

    Before or after the model is quantised: `quantised` says how it will be ("nf4", "fp4", a number
    of bits on the grid of each row, as in the paper, or a function of a weight), `original` what
    its weights were {name: tensor}. Then

        original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        plan = sft.recipes.owq(model, batches, quantised="nf4")
        …                                      # quantise the model with its own library
        sft.convert(model, plan)
        sft.quantised.start_from(model, original)  # the weak columns were never rounded

    Returns the plan. Their share is a density here; the paper's 3.1 bits on average are 0.8 % of
    the columns at 3. Its code quantises by OPTQ (GPTQ) what these columns leave, and its backward
    fails; any format of `sft.quantised` serves here.
    """
    score: Any
    if original is None:
        score = scores.weak_columns(quantised)
    else:
        score = scores.weak_columns(original=original)
    return select(model, score=score, structure="columns", batches=batches, **settings)
