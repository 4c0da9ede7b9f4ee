"""QuEST's selective fine-tuning of a diffusion model in few bits: time embeddings and attention."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from ...places import find, matrix_shape
from ...plan import ALL, Plan
from ...quantised.quantiser import quantiser_of
from ...selection import Rows
from ..parts import is_attention, weights_of
from ..recipe import recipe

PARTS = ("time", "attention")
# In names of modules that embed the time step, whatever their case.
TIME = ("time", "temb", "t_embed", "emb_layers")


@recipe(
    "quest", "QuEST, Wang et al. 2024, arXiv:2402.03666", {"parts": PARTS}, follows="description"
)
def quest(
    model: nn.Module,
    batches: Any = None,
    *,
    parts: str | Iterable[str] = PARTS,
    targets: str | Iterable[str] | None = None,
) -> Plan:
    """the weights that embed the time step, and those of attention, every entry, over few bits

    Of quantised layers every entry gets a value in full precision over its code; of others the
    weight trains whole. parts: "time", "attention" or both; the paper takes one after the other:

        for part in ("time", "attention"):
            sft.convert(model, sft.recipes.quest(model, parts=part))
            …                                # ‖output − output of the full model‖², by time steps
            sft.merge_quantised(model, requantise=True)

    Step sizes of activations, which it trains as well, are parameters of a library's own: name them
    in also=. No batch is looked at. Returns the plan; raises ValueError where no module's name
    tells of a time step or of attention.
    """
    chosen = []
    asked = _asked(parts)
    for name in weights_of(model, targets):
        kind = "time" if _embeds_time(name) else "attention" if is_attention(name) else None
        if kind in asked:
            chosen.append(name)
    if not chosen:
        raise ValueError(
            f"model: no name of its modules says {' or '.join(asked)}; name the weights in"
            " sft.Plan.match(model, …)"
        )
    return Plan({name: _every_entry(model, name) for name in chosen})


def _asked(parts: str | Iterable[str]) -> list[str]:
    asked = [parts] if isinstance(parts, str) else list(parts)
    if not asked or any(part not in PARTS for part in asked):
        raise ValueError(f"parts: expected 'time', 'attention' or both, got {parts!r}")
    return asked


def _embeds_time(name: str) -> bool:
    path = name.rpartition(".")[0].lower()
    return any(word in path for word in TIME)


def _every_entry(model: nn.Module, name: str) -> Rows | str:
    """Codes cannot train, and values over all of them can."""
    if quantiser_of(find(model, name).owner) is None:
        return ALL
    rows, _ = matrix_shape(model, name)
    return Rows(range(rows))
