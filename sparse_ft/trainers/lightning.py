"""SparseCheckpoint: Lightning's Trainer keeps what training changes.

Trainer(callbacks=[SparseCheckpoint()], …)
"""

from typing import Any

from torch import nn

from ..deltas import Delta
from ..deltas.described import described, index_of, read
from .refusals import refuse_clipping_in_backward
from .small import converted_in, expect, small_state

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback

_KEY = "sparse_ft"  # of a checkpoint: the delta of each converted module


class SparseCheckpoint(Callback):
    """Checkpoints hold, of each converted module of a LightningModule, what training changes.

    `fit(ckpt_path=…)` goes on bit for bit, on modules that were converted with the same plan
    (`delta_of(torch.load(path)).plan`) from the same base; others are refused by name. Modules
    that are not converted are kept whole. `save_weights_only=True` asks no callback: such
    checkpoints hold everything.

    Raises ValueError for gradient_clip_val with an optimiser that steps in the backward.
    """

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        for _, module in converted_in(pl_module):
            expect(module)

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        refuse_clipping_in_backward(
            trainer.optimizers, trainer.gradient_clip_val, "gradient_clip_val"
        )

    def on_save_checkpoint(
        self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]
    ) -> None:
        deltas = {}
        for prefix, module in converted_in(pl_module):
            delta = Delta.of(module)
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = small_state(module, state, delta, prefix)
            deltas[prefix] = _told(delta)
        checkpoint[_KEY] = deltas


def delta_of(checkpoint: dict[str, Any], prefix: str = "model.") -> Delta:
    """The delta of the converted module whose keys begin with `prefix`, of a loaded checkpoint.

    `sft.convert(model, delta_of(torch.load(path)).plan)` makes a model ready to go on from it.
    Raises KeyError where the checkpoint has none of that prefix.
    """
    deltas = checkpoint.get(_KEY, {})
    if prefix not in deltas:
        raise KeyError(
            f"prefix: {prefix!r} is no converted module of this checkpoint; it has"
            f" {', '.join(map(repr, deltas)) or 'none'}"
        )
    told = deltas[prefix]
    return read(dict(told["tensors"]), told["document"])


def _told(delta: Delta) -> dict[str, Any]:
    """A delta as tensors and what JSON holds, which torch.load takes without pickled classes."""
    tensors = {}
    for name, part in delta.items():
        tensors[f"{name}.values"] = part.values
        tensors |= index_of(name, part)
    base = {"name": delta.base_name, "rest": delta.rest}
    parts = {name: described(part) for name, part in delta.items()}
    return {"tensors": tensors, "document": {"base": base, "parts": parts}}
