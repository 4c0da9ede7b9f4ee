"""What may happen to a model and its optimiser between two steps, or between a forward and its backward."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import NamedTuple

import torch

import sparse_ft as sft

from .networks import MODELS


class Kind(NamedTuple):
    """on_selective, on_dense: (run, event, what runs the model forward once) -> None; legal: (case) -> bool."""

    on_selective: Callable
    on_dense: Callable
    legal: Callable
    within: bool = False  # may also happen between a forward and its backward


def nothing(run, event, forward):
    pass


def gradients_lost(run, event, forward):
    """A copy of a parameter has no gradient."""
    for weight in run.weights.values():
        weight.grad = None


def deepcopied(run, event, forward):
    run.leave_behind()
    run.model, run.optimizer = copy.deepcopy((run.model, run.optimizer))


def pickled(run, event, forward):
    run.leave_behind()
    run.model, run.optimizer = pickle.loads(pickle.dumps((run.model, run.optimizer)))


def saved_and_loaded(run, event, forward):
    """A fresh model, converted and loaded, goes on with a fresh optimiser, loaded too."""
    file = io.BytesIO()
    torch.save((run.model.state_dict(), run.optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    run.leave_behind()
    frozen_name = run.thaw()
    run.make(seed=run.case.seed + 1)
    run.model.load_state_dict(weights)
    run.optimizer.load_state_dict(state)
    run.freeze(frozen_name)


def evaluated(run, event, forward):
    """A forward in eval mode, with gradients where the event's number is odd."""
    run.model.eval()
    with torch.set_grad_enabled(event.number % 2 == 1):
        run.seen.append(forward())
    run.model.train(run.case.training)


def without_gradients(run, event, forward):
    with torch.no_grad():
        run.seen.append(forward())


def inferred(run, event, forward):
    with torch.inference_mode():
        run.seen.append(forward().clone())


def state_read(run, event, forward):
    run.model.state_dict()


def synced(run, event, forward):
    sft.sync(run.model)


def summarised(run, event, forward):
    str(sft.summary(run.model))


def reverted_and_converted(run, event, forward):
    frozen_name = run.thaw()
    sft.revert(run.model)
    run.convert()
    run.make_optimizer()
    run.freeze(frozen_name)


def state_lost(run, event, forward):
    """The dense side of a new optimiser on values that are gathered from the weights."""
    gradients_lost(run, event, forward)
    run.make_optimizer()


def there_and_back(run, event, forward):
    """A cast that loses nothing."""
    run.model.to(torch.float64).to(run.dtype)


def made_lean(run, event, forward):
    sft.lean(run.model)


def frozen(run, event, forward):
    run.freeze(sorted(run.case.plan)[event.number % len(run.case.plan)])


def always(case):
    return True


def picklable(case):
    """transformers' checkpointing registers a local function."""
    return case.checkpointing is None or case.network.data not in MODELS


EVENTS = {
    "deepcopy": Kind(deepcopied, gradients_lost, always),
    "pickle": Kind(pickled, gradients_lost, picklable),
    "save and load": Kind(saved_and_loaded, gradients_lost, always),
    "eval": Kind(evaluated, evaluated, always, within=True),
    "no_grad": Kind(without_gradients, without_gradients, always, within=True),
    "inference_mode": Kind(inferred, inferred, always, within=True),
    "state_dict": Kind(state_read, nothing, always, within=True),
    "sync": Kind(synced, nothing, always),
    "summary": Kind(summarised, nothing, always, within=True),
    "revert and convert": Kind(reverted_and_converted, state_lost, always),
    "cast and back": Kind(there_and_back, nothing, always),
    "lean": Kind(made_lean, nothing, always),
    "freeze": Kind(frozen, frozen, lambda case: len(case.plan) > 1),
}
