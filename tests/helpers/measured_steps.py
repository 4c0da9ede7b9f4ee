"""What a training step of a real model holds, as torch's allocator sees it."""

import torch

import sparse_ft as sft
from bench.memory import allocator_peak
from sparse_ft.memory.batch import loss_of
from sparse_ft.memory.storages import model_storages


def measured(model, plan, batch, lean=False):
    """(bytes held for backward, peak of a step) of a real model.

    Its second step, above what it holds before. lean: whether, or the arguments of `sft.lean`.
    """
    if plan is not None:
        sft.convert(model, plan)
    if lean:
        sft.lean(model, **(lean if isinstance(lean, dict) else {}))
    held = sft.memory.ledger(model, **batch).total
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.AdamW(trained, fused=True) if plan is None else sft.SelectiveAdamW(trained)
    )

    def step():
        loss_of(model(**batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    before = sum(storage.nbytes() for storage in model_storages(model).values())
    before += sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    return held, before + allocator_peak(step)[0]
