"""capture: a function that does what a training step does, from a CUDA graph."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..messages import described
from ..trees import leaves, map_leaves
from . import runtime
from .arguments import buffer_of, detached, signature
from .held import Held, Trained


def capture(
    step: Callable[..., Any],
    model: nn.Module | Iterable[nn.Module],
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    *,
    warm_up: int = 2,
) -> "Captured":
    """A function that does what `step` does, from a CUDA graph: one launch instead of thousands.

    Below some thousand tokens a step waits for the host, not for the GPU; a replay does not.

        def step(input_ids, labels):
            loss = model(input_ids=input_ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        optimizer = sft.SelectiveAdamW(model.parameters(), lr=torch.tensor(1e-3, device="cuda"))
        step = sft.capture(step, model, optimizer)
        for batch in batches:
            loss = step(batch["input_ids"], batch["labels"])
            scheduler.step()

    step: forward, backward and the optimiser's step, or a part of these. It must not look at a
    number on the GPU (`loss.item()`), and do nothing else that is to be done at each call: no
    scheduler's step, no logging. What it returns, tensors in lists, tuples and dicts, comes back
    detached, and is written over by the next call.
    model: what it trains; or several. optimizer: what it steps with; or several; None where it does
    not.
    warm_up: how many calls run as they are before one is recorded, at least 1. Every call is one
    step of training, those too.

    Tensors among the arguments are copied into buffers of the graph. Each new combination of shapes
    and dtypes (the last batch of an epoch) has a warm-up and a graph of its own, with the memory of
    a step.

    Learning rates are read anew where they are tensors on the GPU, so that schedulers work; torch's
    own optimisers want `capturable=True`. A number of a parameter group that has changed raises
    ValueError. Where a parameter, a state of the optimiser or what is selected has moved
    (`load_state_dict`, `sft.reselect`), the step is recorded anew. Gradients that the step leaves
    are there after each call. Values that somebody else wrote between two calls show in the
    weights.

    On other devices each call runs the step as it is, and a warning says so. Raises ValueError that
    names the argument; RuntimeError, and nothing has changed, where the step cannot be recorded.
    """
    if isinstance(step, nn.Module) or not callable(step):
        raise TypeError(f"step: expected a function that makes a step, got {described(step)}")
    models = _several("model", model, nn.Module)
    optimizers = [] if optimizer is None else _several("optimizer", optimizer, Optimizer)
    if isinstance(warm_up, bool) or not isinstance(warm_up, int) or warm_up < 1:
        raise ValueError(f"warm_up: expected at least 1, got {warm_up!r}")
    return Captured(step, Trained(models, optimizers), warm_up)


def _several(name: str, given: Any, kind: type) -> list:
    """One or several of a kind, as a list."""
    is_list = isinstance(given, Iterable) and not isinstance(given, kind)
    found = list(given) if is_list else [given]
    for each in found:
        if not isinstance(each, kind):
            raise TypeError(
                f"{name}: expected one {kind.__name__} or several, got {described(each)}"
            )
    return found


class Captured:
    """What `capture` returns: called as the step is. `recorded`: how often it was recorded."""

    def __init__(self, step: Callable[..., Any], trained: "Trained", warm_up: int) -> None:
        self.step = step
        self.trained = trained
        self.warm_up = warm_up
        self.recorded = 0
        self._runtime: Any = None
        self._calls: dict[tuple, Call] = {}  # by shapes and dtypes
        self._warned = False

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        device = self.trained.device
        if self._runtime is None:
            self._runtime = runtime.runtime_of(device)
        if self._runtime is None:
            self._warn_of_no_graph(device)
            return self.step(*arguments, **keywords)
        given = arguments, keywords
        key = signature(given)
        if key not in self._calls:
            self._calls[key] = Call(given, device, self.warm_up)
        return self._run(self._calls[key], given)

    def _run(self, call: "Call", given: Any) -> Any:
        call.take(given)
        if call.replay is not None and not call.held.is_current():
            call.forget()
        if call.replay is None and call.left:
            call.left -= 1
            return self._runtime.run(lambda: self._step_on(call))
        if call.replay is None:
            self._record(call)
        else:
            call.held.check_numbers()
            call.held.show()
        call.replay()
        call.held.replayed()
        return call.result

    def _step_on(self, call: "Call") -> Any:
        arguments, keywords = call.inputs
        return map_leaves(detached, self.step(*arguments, **keywords))

    def _record(self, call: "Call") -> None:
        held = Held(self.trained)
        held.begin()
        try:
            replay, result = self._runtime.record(lambda: self._step_on(call))
            held.end()
        except Exception as error:
            held.undo()
            if isinstance(error, ValueError):
                raise
            raise RuntimeError(
                f"capture: the step cannot be recorded ({_told(error)}). A step that is recorded"
                " must not wait for the GPU (item(), tolist(), a printed tensor, a mask as an"
                " index) and must not copy from host memory; return tensors, and look at them"
                " after the call"
            ) from error
        call.replay, call.result, call.held = replay, result, held
        self.recorded += 1

    def _warn_of_no_graph(self, device: torch.device) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"capture: the model is on {device}, which has no CUDA graphs; each call runs the step"
            " as it is",
            stacklevel=3,
        )


class Call:
    """A step for arguments of one combination of shapes and dtypes."""

    def __init__(self, given: Any, device: torch.device, warm_up: int) -> None:
        self.inputs = map_leaves(lambda leaf: buffer_of(leaf, device), given)
        self.left = warm_up  # calls before it is recorded
        self.replay: Any = None
        self.result: Any = None
        self.held: Any = None  # what the graph holds, a `Held`

    def take(self, given: Any) -> None:
        """Copy the arguments into the buffers."""
        for buffer, leaf in zip(leaves(self.inputs), leaves(given)):
            if isinstance(leaf, torch.Tensor):
                buffer.copy_(leaf, non_blocking=True)

    def forget(self) -> None:
        """Record anew, after a call that runs as it is."""
        self.replay = self.result = self.held = None
        self.left = 1


def _told(error: Exception) -> str:
    first, *_ = str(error).splitlines() or ["no message"]
    return f"{type(error).__name__}: {first}"
