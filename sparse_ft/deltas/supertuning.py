"""Super-Tuning (arXiv:2607.09287), PEFT's format.

What is added, in fp32, and flat positions in int32: 8 bytes an entry; with a rank, a LoRA beside
it.
"""

import os

import torch
from torch import nn

from . import places
from .adapters import delta_of_changes, module_of, read_adapter
from .delta import Delta


def load_supertuning(folder: str | bytes | os.PathLike, base: nn.Module) -> Delta:
    """The Super-Tuning adapter in `folder`, saved by PEFT, as a delta of its `base`.

    One that was saved without its positions has them found again as PEFT does, by the magnitudes of
    the base. Of one with a LoRA beside the entries (Supra), the weights change whole. Raises
    ValueError, KeyError or OSError, naming file and tensor, for a broken or foreign one.
    """
    config, tensors = read_adapter(folder, "SUPERTUNING")
    entries, wholes = {}, {}
    for key in [key for key in tensors if key.endswith(".supertuning_values")]:
        module = module_of(key)
        name, added = f"{module}.weight", tensors.pop(key)
        positions = tensors.pop(f"{module}.supertuning_indices", None)
        if positions is None:
            positions = _largest(base, name, len(added), config.get("select_top", True))
        halves = [tensors.pop(f"{module}.supertuning_lora_{half}.weight", None) for half in "AB"]
        lora = [half for half in halves if half is not None]
        if len(lora) < 2:
            entries[name] = positions.long(), added
        else:
            wholes[name] = _with_lora(base, name, positions.long(), added, lora, config)
    return delta_of_changes(base, entries, wholes | tensors, config)


def _largest(base: nn.Module, name: str, count: int, select_top: bool) -> torch.Tensor:
    """The positions that PEFT chooses: of the largest (or smallest) magnitudes."""
    magnitudes = places.matrix_of(base, name).abs().flatten()
    return torch.topk(magnitudes, k=count, largest=bool(select_top)).indices.cpu()


def _with_lora(
    base: nn.Module,
    name: str,
    positions: torch.Tensor,
    added: torch.Tensor,
    lora: list[torch.Tensor],
    config: dict,
) -> torch.Tensor:
    """The whole new weight: base + entries + (alpha / r) * B · A, in fp32."""
    a, b = lora
    weight = places.matrix_of(base, name).detach().cpu().float()
    scaling = float(config["lora_alpha"]) / float(config["r"])
    flat = weight.reshape(-1).index_add(0, positions, added.float())
    return flat.view(weight.shape) + scaling * (b.float() @ a.float())
