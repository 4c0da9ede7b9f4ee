"""What may happen to a model and its optimiser between two steps, or between a forward and its
backward.
"""

import copy
import io
import pickle
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import sparse_ft as sft

from .models import MODELS


class Kind(NamedTuple):
    """on_selective, on_dense: (run, event, what runs the model forward once) -> None; legal: (case)
    -> bool.
    """

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
    run.model, run.optimizers = copy.deepcopy((run.model, run.optimizers))


def pickled(run, event, forward):
    run.leave_behind()
    run.model, run.optimizers = pickle.loads(pickle.dumps((run.model, run.optimizers)))


def saved(run):
    """(model's state, [optimiser's state]) through a file."""
    file = io.BytesIO()
    torch.save(
        (run.model.state_dict(), [optimizer.state_dict() for optimizer in run.optimizers]), file
    )
    file.seek(0)
    return torch.load(file, weights_only=True)


def saved_and_loaded(run, event, forward):
    """A fresh model, converted and loaded, goes on with a fresh optimiser, loaded too."""
    weights, states = saved(run)
    run.leave_behind()
    frozen_name = run.thaw()
    run.make(seed=run.case.seed + 1)
    run.model.load_state_dict(weights)
    load_optimizers(run, states)
    run.freeze(frozen_name)


def loaded_with_plan(run, event, forward):
    """A fresh model that is not converted: the checkpoint brings the plan."""
    weights, states = saved(run)
    run.leave_behind()
    frozen_name = run.thaw()
    run.make_model(seed=run.case.seed + 1)
    run.model.to(run.dtype)
    sft.load(run.model, weights)
    if run.case.lean is not None:
        sft.lean(run.model, loss=run.case.lean == "loss")
    run.make_optimizers()
    load_optimizers(run, states)
    run.freeze(frozen_name)


def load_optimizers(run, states):
    for optimizer, state in zip(run.optimizers, states, strict=True):
        optimizer.load_state_dict(state)


def weights_loaded(run, event, forward):
    """What a model without selections would load; values are gathered from it."""
    run.model.load_state_dict(copy.deepcopy(sft.state_dict(run.model)))


def masters_lost(run, event, forward):
    with torch.no_grad():
        for name, master in run.masters.items():
            master.copy_(run.weights[name])


def edited(run, event, forward):
    """What trains is written in place."""
    with torch.no_grad():
        for name in run.plan:
            run.trained(name).mul_(0.9)


def edited_dense(run, event, forward):
    with torch.no_grad():
        for name, master in run.masters.items():
            master.copy_(torch.where(run.masks[name], master * 0.9, master))
    run.show()


def vector_round_trip(run, event, forward):
    """Writers that leave no trace, followed by sft.sync."""
    trained = [run.trained(name) for name in run.plan]
    vector = nn.utils.parameters_to_vector(trained).detach()
    nn.utils.vector_to_parameters(vector * 0.9, trained)
    sft.sync(run.model)


def toggled(run, event, forward):
    """Nothing requires grad for a while, as in adversarial training."""
    flags = [(parameter, parameter.requires_grad) for parameter in run.model.parameters()]
    run.model.requires_grad_(False)
    run.seen.append(forward())
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


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


def generated(run, event, forward):
    """Greedy tokens of a language model."""
    training = run.model.training
    tokens = run.model.eval().model.generate(
        torch.tensor([[1, 4]]), max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    run.seen.append(tokens.double())
    run.model.train(training)


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
    run.make_optimizers()
    run.freeze(frozen_name)


def state_lost(run, event, forward):
    """The dense side of a new optimiser on values that are gathered from the weights."""
    gradients_lost(run, event, forward)
    run.make_optimizers()


def restored(run, event, forward):
    """Half way to the base, to the base, and back."""
    for alpha in (0.5, 0.0, 1.0):
        sft.restore(run.model, alpha)


def there_and_back(run, event, forward):
    """A cast that loses nothing."""
    run.model.to(torch.float64).to(run.dtype)


def made_lean(run, event, forward):
    sft.lean(run.model, loss=run.case.network.data.endswith(" loss"))


def frozen(run, event, forward):
    run.freeze(sorted(run.case.plan)[event.number % len(run.case.plan)])


def always(case):
    return True


def keeps_no_masters(case):
    """Where the optimiser has them, or their other halves, nobody else writes values."""
    return case.optimizer not in ("SelectiveAdamW correction", "master copies")


def keeps_origin(case):
    return case.origin


def generates(case):
    """Where rounding does not choose the tokens."""
    return (
        case.network.data in ("llama", "gpt2")
        and case.dtype != "bf16"
        and not case.autocast
        and not case.checkpointing
    )


def fits_a_vector(case):
    """Values and parameters that train whole are of one dtype."""
    return (
        keeps_no_masters(case) and case.dtype != "bf16" and case.values_dtype in (None, case.dtype)
    )


def picklable(case):
    """transformers' checkpointing registers a local function.

    Torch refuses modules with parametrizations.
    """
    if any(layer.kind == "weight norm" for layer in case.network.layers):
        return False
    return case.checkpointing is None or case.network.data not in MODELS


EVENTS = {
    "deepcopy": Kind(deepcopied, gradients_lost, always),
    "pickle": Kind(pickled, gradients_lost, picklable),
    "save and load": Kind(saved_and_loaded, gradients_lost, always),
    "load with plan": Kind(loaded_with_plan, gradients_lost, always),
    "load weights": Kind(weights_loaded, masters_lost, keeps_no_masters),
    "edit": Kind(edited, edited_dense, keeps_no_masters),
    "vector": Kind(vector_round_trip, edited_dense, fits_a_vector),
    "toggle": Kind(toggled, toggled, always),
    "eval": Kind(evaluated, evaluated, always, within=True),
    "no_grad": Kind(without_gradients, without_gradients, always, within=True),
    "inference_mode": Kind(inferred, inferred, always, within=True),
    "generate": Kind(generated, generated, generates, within=True),
    "state_dict": Kind(state_read, nothing, always, within=True),
    "sync": Kind(synced, nothing, always),
    "summary": Kind(summarised, nothing, always, within=True),
    "revert and convert": Kind(reverted_and_converted, state_lost, always),
    "restore": Kind(restored, nothing, keeps_origin),
    "cast and back": Kind(there_and_back, nothing, always),
    "lean": Kind(made_lean, nothing, always),
    "freeze": Kind(frozen, frozen, lambda case: len(case.plan) > 1),
}
