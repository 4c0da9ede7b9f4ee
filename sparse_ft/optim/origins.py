"""Weight decay towards the pretrained values, which `sft.convert(..., origin=True)` keeps."""

import torch

from ..nn.origin import origin_of

PLACES = "zero", "origin"  # that weight decay goes to


def decays_to_origin(group: dict) -> bool:
    """Whether a parameter group asks for it, and decays at all."""
    return group.get("decay_to") == "origin" and group["weight_decay"] != 0


def check_decay_to(place: str) -> None:
    """Raise ValueError for a place that weight decay does not go to."""
    if place not in PLACES:
        raise ValueError(f"decay_to: expected 'zero' or 'origin', got {place!r}")


def check_origin(p: torch.Tensor, name: str, settings: dict) -> None:
    """Raise ValueError for a parameter, `name` in messages, that should decay to an origin which it
    does not have.
    """
    check_decay_to(settings.get("decay_to", "zero"))
    if decays_to_origin(settings) and origin_of(p) is None:
        raise ValueError(
            f"decay_to: the origin of {name} was not kept; sft.convert(..., origin=True) keeps it"
        )
