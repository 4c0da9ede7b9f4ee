"""Checkpoints of torch.distributed.checkpoint (DCP) of a run under FSDP2, and a rank that dies."""

import os
import signal
import time
import warnings
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from helpers import ranks, sharded_net
from helpers.sharded_net import PLAN, Case
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import sparse_ft as sft

SAVED_AT, STEPS = 3, 6
CASE = Case(steps=STEPS)
HEAD = Case(steps=SAVED_AT)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """In names of the model, whatever wraps it."""
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer}


def whole(state: Any) -> Any:
    """A copy of it on one process."""
    if isinstance(state, dict):
        return {name: whole(what) for name, what in state.items()}
    if isinstance(state, list):
        return [whole(what) for what in state]
    if hasattr(state, "full_tensor"):
        return state.full_tensor().clone()
    return state.clone() if isinstance(state, torch.Tensor) else state


def load(folder: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """In one process or several."""
    state = state_of(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, that this process is by itself
        dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer,
        model_state_dict=state["model"], optim_state_dict=state["optimizer"],
    )  # fmt: skip


def begun(case: Case, is_sharded: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = sharded_net.converted(case)
    if is_sharded:
        sharded_net.shard(model)
    return model, sharded_net.OPTIMIZERS[case.optimizer](model.parameters())


def losses_of_all(losses: list[torch.Tensor]) -> torch.Tensor:
    summed = torch.stack(losses)
    if not distributed.is_initialized():
        return summed
    distributed.all_reduce(summed)
    return summed / distributed.get_world_size()


def resume(folder: str, name: str, rank: int, world: int) -> dict[str, Any]:
    """State, and losses from there on. world: 1 for one process, without a process group."""
    model, optimizer = begun(CASE, is_sharded=world > 1)
    load(f"{folder}/{name}", model, optimizer)
    state = whole(state_of(model, optimizer))
    losses = sharded_net.train(model, optimizer, CASE, rank, world, first=SAVED_AT)
    return {"state": state, "losses": losses_of_all(losses)}


def save(folder: str, rank: int, world: int) -> dict[str, Any]:
    """Saved at once and while training goes on; the losses of all steps."""
    model, optimizer = begun(CASE)
    losses = sharded_net.train(model, optimizer, HEAD, rank, world)
    state = state_of(model, optimizer)
    saved = whole(state)
    dcp.save(state, checkpoint_id=f"{folder}/checkpoint")
    apart = distributed.new_group(backend="gloo")  # training goes on in the other one
    later = f"{folder}/checkpoint later"
    writing: Any = dcp.async_save(state, checkpoint_id=later, process_group=apart)
    losses += sharded_net.train(model, optimizer, CASE, rank, world, first=SAVED_AT)
    writing.result(timeout=300)
    return {"losses": losses_of_all(losses), "state": saved}


def other_selection(folder: str) -> str:
    """What loading under a plan says that selects other entries, as many."""
    other = PLAN | {"layers.0.down.weight": sft.Rows([2, 3, 4])}
    model, optimizer = begun(Case(plan=other))
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=f"{folder}/checkpoint")
    try:
        model.load_state_dict(state["model"], strict=False)
    except RuntimeError as error:
        return str(error)
    return ""


def dies(folder: str, rank: int, world: int) -> dict[str, Any]:
    """The last rank is killed in its backward; what the others see of it, and when."""
    model, optimizer = begun(CASE)
    load(f"{folder}/checkpoint", model, optimizer)

    def kill(*_: Any) -> None:
        if rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    sharded_net.train(model, optimizer, Case(steps=SAVED_AT + 1), rank, world, first=SAVED_AT)
    model.layers[0].register_full_backward_hook(kill)
    start = time.monotonic()
    try:
        sharded_net.train(model, optimizer, CASE, rank, world, first=SAVED_AT + 1)
    except RuntimeError as error:
        return {"seconds": time.monotonic() - start, "error": str(error)}
    return {}


def with_one_killed(folder: str) -> None:
    """A run of two ranks of which one dies, begun by this process, which has no process group."""

    def joins_and_dies(rank: int) -> None:
        ranks.joined(rank, 2, f"{folder}/killed", lambda rank: dies(folder, rank, 2))

    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            ranks.become(rank, joins_and_dies)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def run(folder: str, rank: int, world: int) -> dict[str, Any]:
    return {"saved": save(folder, rank, world), "other selection": other_selection(folder)}
