"""routing: how often each expert of a mixture is chosen (ESFT, CEFT)."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ...messages import described
from ..job import Batches
from ..untouched import Untouched, untouched


def routing(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    gates: bool = False,
    max_batches: int | None = None,
) -> dict[str, float]:
    """{"<mixture>.<expert>": the share of its layer's choices that fall on it}, 1 in a layer.

    gates: the mean of its gate instead, softmax of the router over the chosen experts. For models
    that give `router_logits` (transformers: `output_router_logits=True`) and say in their config
    how many experts a token has. The mixtures are the modules with a child called "experts", in
    order. Padding counts, unless the batch has an `attention_mask`. The model is left as it was.
    Raises ValueError where there are no router logits.
    """
    config = getattr(model, "config", None)
    chosen = getattr(config, "num_experts_per_tok", None)
    mixtures = [name for name, module in model.named_modules() if hasattr(module, "experts")]
    if not isinstance(chosen, int) or not mixtures:
        raise ValueError(
            f"model: expected a mixture of experts whose config has num_experts_per_tok, got"
            f" {described(model)}"
        )
    sums: list[torch.Tensor] = []

    def run(saved: Untouched) -> None:
        with torch.no_grad():
            for batch in Batches(batches, max_batches):
                every = _router_logits(model, batch)
                kept = _kept(batch, every[0].reshape(-1, every[0].size(-1)).size(0))
                for number, logits in enumerate(every):
                    counted = _counted(logits, kept, chosen, gates)
                    if number < len(sums):
                        sums[number] += counted
                    else:
                        sums.append(counted)

    untouched(model, run)
    if not sums:
        raise ValueError("batches: expected at least one batch, got none")
    if len(sums) != len(mixtures):
        raise ValueError(
            f"model: {len(sums)} router logits for {len(mixtures)} modules with experts; these do"
            " not belong together"
        )
    found = {}
    for name, count in zip(mixtures, sums):
        for expert, share in enumerate((count / count.sum()).tolist()):
            found[f"{name}.{expert}"] = share
    return found


def _router_logits(model: nn.Module, batch: Mapping[str, Any]) -> list[torch.Tensor]:
    output = model(**batch, output_router_logits=True)
    logits = getattr(output, "router_logits", None)
    if not logits:
        raise ValueError(f"model: expected router_logits in its output, got {described(output)}")
    return [one for one in logits if isinstance(one, torch.Tensor)]


def _kept(batch: Mapping[str, Any], tokens: int) -> torch.Tensor | None:
    mask = batch.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.numel() != tokens:
        return None
    return mask.reshape(-1).bool()


def _counted(
    logits: torch.Tensor, kept: torch.Tensor | None, chosen: int, gates: bool
) -> torch.Tensor:
    """fp64 [experts]: how often each was chosen, or the sum of its gates."""
    flat = logits.reshape(-1, logits.size(-1)).double().cpu()
    if kept is not None:
        flat = flat[kept.cpu()]
    best = flat.topk(chosen, dim=-1)
    amounts = best.values.softmax(-1) if gates else torch.ones_like(best.values)
    count = torch.zeros(flat.size(-1), dtype=torch.float64, device="cpu")
    return count.index_add_(0, best.indices.reshape(-1), amounts.reshape(-1))
