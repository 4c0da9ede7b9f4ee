"""What no trainer may do silently."""

from typing import Any

from ..optim import SelectiveAdamW


def refuse_clipping_in_backward(optimizers: list[Any], clip: float | None, argument: str) -> None:
    """Raise ValueError where gradients are to be clipped that are gone by then.

    clip: the largest norm or value, None or 0 for no clipping. argument: how the trainer calls it.
    """
    if not clip:
        return
    for optimizer in optimizers:
        inner = _unwrapped(optimizer)
        if isinstance(inner, SelectiveAdamW) and inner._backward is not None:
            raise ValueError(
                f"{argument}: {clip} clips nothing, for SelectiveAdamW(in_backward=True) has"
                f" stepped and freed each gradient by then; {argument}=0, or in_backward=False"
            )


def _unwrapped(optimizer: Any) -> Any:
    """The optimiser inside of accelerate's or another wrapper."""
    while not isinstance(optimizer, SelectiveAdamW) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
