"""The hyperparameters of a SelectiveAdamW's parameter groups, checked and as a step takes them."""

from typing import Any

import torch

from ..ops._adamw_tensor import Settings

# Of a parameter group, without which there is no step.
SETTINGS = "lr", "betas", "eps", "weight_decay"


def check_settings(group: dict) -> None:
    """Raise ValueError that names the setting."""
    lr, betas = group["lr"], group["betas"]
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError(
            f"lr: expected a float or a tensor of one element, got shape {tuple(lr.shape)}"
        )
    for name in ("lr", "eps", "weight_decay"):
        _check_not_negative(name, group[name])
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas: expected two numbers, got {betas}")
    for i, beta in enumerate(betas):
        if not 0 <= float(beta) < 1:
            raise ValueError(f"betas: expected numbers in [0, 1), got {beta} at position {i}")


def _check_not_negative(name: str, value: Any) -> None:
    if stays_on_device(value):  # it is not looked at
        return
    if isinstance(value, str) or not float(value) >= 0:
        raise ValueError(f"{name}: expected a number of at least 0, got {value!r}")


def stays_on_device(lr: Any) -> bool:
    """Whether lr need not be read on the host."""
    return isinstance(lr, torch.Tensor) and not lr.is_cpu


def settings_of(group: dict, device: torch.device) -> Settings:
    """What the parameters of `group` on `device` step with."""
    lr: Any = group["lr"]
    lr_at = None
    beta1, beta2 = group["betas"]
    if stays_on_device(lr) and device.type != "cpu":
        lr, lr_at = 0.0, lr.detach().to(device, torch.float32)
    return Settings(
        float(lr),
        float(beta1),
        float(beta2),
        float(group["eps"]),
        float(group["weight_decay"]),
        lr_at,
    )
