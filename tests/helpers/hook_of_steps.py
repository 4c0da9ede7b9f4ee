"""The hook that torch calls after optimiser steps, in a process where nothing else is selective.

`python hook_of_steps.py`: each of CASES in a fork of its own; prints the names of those that hold.
"""

import gc
import os
import sys
import warnings

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import sparse_ft as sft
from sparse_ft.nn import steps


def hooks_of_steps() -> list:
    """What torch calls after a step of every optimiser of the process."""
    seen = []
    handle = register_optimizer_step_post_hook(lambda *_: None)
    seen.extend(hook for hook in handle.hooks_dict_ref().values() if hook is steps._after_step)
    handle.remove()
    return seen


def goes_with_the_last_values() -> None:
    """Not before: an optimiser that holds values of a reverted model is told so."""
    assert not hooks_of_steps()
    first, second = (nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
    for model in (first, second):
        sft.convert(model, {"0.weight": sft.Rows([1])})
    assert len(hooks_of_steps()) == 1
    del first
    gc.collect()
    optimizer = torch.optim.SGD([second[0].values], lr=0.1)
    sft.revert(second)
    assert len(hooks_of_steps()) == 1
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        optimizer.step()
    assert any("train no weight any more" in str(warning.message) for warning in warned)
    del warned
    del optimizer
    gc.collect()
    assert not hooks_of_steps()
    sft.convert(second, {"0.weight": sft.Rows([1])})
    assert len(hooks_of_steps()) == 1
    sft.revert(second)
    assert not hooks_of_steps()


def stays_where_a_model_dies_within_a_step() -> None:
    """torch goes through its hooks then, and other ones come after ours."""
    models = [nn.Sequential(nn.Linear(4, 4))]
    sft.convert(models[0], {"0.weight": sft.Rows([1])})
    after = []
    handle = register_optimizer_step_post_hook(lambda *_: after.append(1))
    module = models[0][0]
    module.after_foreign_step = lambda: (models.clear(), gc.collect())
    del module
    plain = nn.Parameter(torch.zeros(1))
    torch.optim.SGD([plain], lr=0.1).step()
    handle.remove()
    assert after == [1] and not models
    assert not steps._live and steps._hook.is_there
    other = nn.Sequential(nn.Linear(4, 4))
    sft.convert(other, {"0.weight": sft.Rows([1])})
    sft.revert(other)
    assert not hooks_of_steps()


CASES = {
    "last_values": goes_with_the_last_values,
    "dies_within_a_step": stays_where_a_model_dies_within_a_step,
}


def holds(case: str) -> bool:
    """In a fork of this process, which has imported all and made nothing selective."""
    child = os.fork()
    if not child:
        CASES[case]()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == 0


if __name__ == "__main__":
    for case in CASES:
        print(case, flush=True) if holds(case) else sys.exit(f"{case} does not hold")
