"""The ages of single entries in an optimiser's state: a generation each, and when each began.

State without them has one age a tensor, its step. See `ops._adamw_variation`.
"""

import torch

from ..ops._adamw_variation import MOST_GENERATIONS


def ages_in(loaded: dict, p: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(generation, births) of a loaded state of p. Raises ValueError that names what is wrong."""
    generation, births = loaded.get("generation"), loaded.get("births")
    if not isinstance(generation, torch.Tensor) or not isinstance(births, torch.Tensor):
        raise ValueError(f"state_dict: {name}: generation and births are tensors, and go together")
    if generation.dtype != torch.uint8 or generation.shape != p.shape:
        raise ValueError(
            f"state_dict: {name}: its generation is {generation.dtype} {tuple(generation.shape)},"
            f" expected torch.uint8 {tuple(p.shape)}"
        )
    count = births.numel()
    if births.dim() != 1 or not 0 < count <= MOST_GENERATIONS:
        raise ValueError(
            f"state_dict: {name}: its births have shape {tuple(births.shape)}, expected"
            f" 1 to {MOST_GENERATIONS}"
        )
    if generation.numel() and int(generation.max()) >= count:
        raise ValueError(
            f"state_dict: {name}: generation {int(generation.max())} has no birth among {count}"
        )
    like = torch.empty_like(p, dtype=torch.uint8)
    return like.copy_(generation), births.to(p.device, torch.float32)
