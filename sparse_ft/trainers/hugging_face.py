"""SparseCallback: transformers' Trainer, and those that are made of it, keep what training changes.

Trainer(model, arguments, callbacks=[SparseCallback()], …)
"""

import functools
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from .. import _tensorfile
from ..annotations import AnyModule
from ..converted import record_of
from ..deltas import save_delta
from ..deltas.files import FILE
from ..plan import Plan
from .refusals import refuse_clipping_in_backward
from .small import KEY, expect, has_left, small_state

_SAVE = "save_pretrained"
PLAN = "plan.safetensors"  # in a checkpoint whose delta knows more entries than train


class SparseCallback(TrainerCallback):
    """Checkpoints of a converted model hold what training changes, not the whole model.

    A checkpoint folder gets `model.safetensors` with the values in their own dtype, the parameters
    that train whole and the buffers, and `delta.safetensors`, which `sft.load_delta` and
    `sft.apply` take. `train(resume_from_checkpoint=…)` goes on bit for bit, on a model that was
    converted with the same plan (`sft.load_delta(checkpoint).plan`) from the same base; others are
    refused by name. After `sft.reselect(dropped="keep")` a checkpoint holds the whole model, and
    the plan in `plan.safetensors`. `save_pretrained` and `trainer.save_model` write the whole
    model, as ever.

    Raises ValueError for max_grad_norm with an optimiser that steps in the backward.
    """

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if model is not None and record_of(model) is not None:
            expect(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        refuse_clipping_in_backward([optimizer], args.max_grad_norm, "max_grad_norm")
        if model is None or record_of(model) is None:
            if not getattr(model, "peft_config", None):  # an adapter's checkpoint is small as it is
                _warn("the model is not converted, so checkpoints hold all of it")
            return
        if getattr(args, "deepspeed", None):
            _warn("DeepSpeed keeps the whole model in its own part of each checkpoint")
        expect(model)
        if hasattr(type(model), _SAVE):
            whole = model.__dict__.get(_SAVE, getattr(model, _SAVE))
            self._whole = whole
            model.__dict__[_SAVE] = functools.partial(_save, model, whole, args.output_dir)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """The Trainer has written a plain nn.Module as a whole, by itself."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        is_converted = model is not None and record_of(model) is not None
        written = folder / SAFE_WEIGHTS_NAME
        is_whole = written.exists() and not (folder / FILE).exists()
        if model is not None and args.should_save and is_converted and is_whole:
            _write(model, folder, model.state_dict())

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        whole = self.__dict__.pop("_whole", None)
        if model is not None and whole is not None:
            model.__dict__[_SAVE] = whole


def _save(
    model: AnyModule,
    whole: Any,
    output_dir: str,
    save_directory: str | os.PathLike,
    *args: Any,
    state_dict: dict[str, torch.Tensor] | None = None,
    is_main_process: bool = True,
    **kwargs: Any,
) -> Any:
    """`save_pretrained` while the Trainer trains: small into its checkpoints, whole elsewhere."""
    folder = Path(save_directory)
    is_checkpoint = folder.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-")
    if not is_checkpoint or Path(output_dir).resolve() not in folder.resolve().parents:
        more = {"state_dict": state_dict, "is_main_process": is_main_process, **kwargs}
        return whole(save_directory, *args, **more)
    if is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        model.config.save_pretrained(folder)
        _write(model, folder, model.state_dict() if state_dict is None else state_dict)


def _write(model: nn.Module, folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Both files, each whole or not at all."""
    delta = save_delta(model, folder / FILE)
    record = record_of(model)
    if record is not None and has_left(model):
        Plan(record.plan).save(folder / PLAN)
    once: dict[tuple, tuple[str, torch.Tensor]] = {}
    for name, tensor in small_state(model, state, delta).items():
        # Tied parameters that train have several names, and a file holds one.
        place = tensor.data_ptr() or id(tensor)
        once.setdefault((place, tensor.shape), (name, tensor))
    _tensorfile.save(folder / SAFE_WEIGHTS_NAME, dict(once.values()), {"format": KEY})


def _warn(why: str) -> None:
    warnings.warn(f"SparseCallback: {why}", stacklevel=4)
