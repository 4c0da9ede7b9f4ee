"""A run that chooses anew and saves itself, killed again and again: `reselect_killed.py FOLDER`.

SIGKILL comes at a chosen line of a reselection or of a checkpoint, or from outside at a random
moment of either. Another process goes on from the last whole checkpoint. Prints, as JSON, how many
kills came where, and which of the runs did not end with the bits of one that nobody killed.
"""

import contextlib
import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import torch
from helpers.reselected import backward, net, plan_of
from torch import nn

import sparse_ft as sft

STEPS, EVERY = 9, 3
DEADLINE = 240  # seconds that a process may take
OURS = ("sparse_ft/reselection", "sparse_ft/optim", "sparse_ft/nn", "sparse_ft/carried")
TORCH_SAVE = ("torch/serialization", "helpers/reselect_killed")


class Run:
    """A model in bfloat16 with fp32 masters, its optimiser and its schedule, and their file.

    around: (what, act) -> None calls `act`, which is a "reselection" or a "checkpoint".
    """

    def __init__(self, folder: Path, around: Callable[[str, Callable[[], Any]], None]):
        self.path, self.around = folder / "checkpoint", around
        self.model = net(torch.bfloat16)
        saved = torch.load(self.path) if self.path.exists() else None
        if saved is None:
            sft.convert(self.model, plan_of(0), origin=True)
        else:
            sft.load(self.model, saved["model"])
        self.optimizer = sft.SelectiveAdamW(self.model.parameters(), 1e-2)
        self.schedule = sft.Every(EVERY, self.plan).attach(self.model, self.optimizer)
        if saved is not None:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.schedule.load_state_dict(saved["schedule"])

    def plan(self, model: nn.Module) -> dict[str, sft.Selection]:
        return plan_of(self.schedule.steps)

    def go_on(self) -> None:
        """To the end, with a checkpoint on either side of each reselection."""
        while self.schedule.steps < STEPS:
            backward(self.model, self.schedule.steps, torch.bfloat16)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if (self.schedule.steps + 1) % EVERY:
                self.schedule.step()
            else:
                self.around("reselection", self.schedule.step)
            self.around("checkpoint", self.save)

    def save(self) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        torch.save(state, unfinished)
        os.replace(unfinished, self.path)

    def bits(self) -> dict[str, torch.Tensor]:
        """All that it ends with, by name."""
        names = {p: name for name, p in self.model.named_parameters()}
        states = {
            f"{names[parameter]} {key}": tensor
            for parameter, state in self.optimizer.state.items()
            for key, tensor in state.items()
        }
        return {**dict(self.model.state_dict().items()), **states}


def plainly(what: str, act: Callable[[], Any]) -> None:
    act()


class Lines:
    """Counts the lines of Python that a stage runs; dies before line `last` of the `turn`th one."""

    def __init__(self, stage: str, turn: int, last: int | None = None):
        self.stage, self.turn, self.last = stage, turn, last
        self.turns = self.lines = 0
        self.files = OURS if stage == "reselection" else TORCH_SAVE

    def __call__(self, what: str, act: Callable[[], Any]) -> None:
        self.turns += what == self.stage
        if what != self.stage or self.turns != self.turn:
            return act()
        sys.settrace(self._trace)
        try:
            act()
        finally:
            sys.settrace(None)

    def _trace(self, frame: Any, event: str, argument: Any) -> Any:
        if not any(part in frame.f_code.co_filename for part in self.files):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._trace


@contextlib.contextmanager
def forked(act: Callable[[], None]) -> Iterator[int]:
    """Another process that does `act`; gives its id, and waits for its end."""
    child = os.fork()
    if child == 0:
        signal.alarm(DEADLINE)  # ends it, too
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    try:
        yield child
    finally:
        _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended in (0, -signal.SIGKILL), f"a process ended with {ended}"


def killed_at_line(folder: Path, stage: str, turn: int, line: int) -> None:
    with forked(lambda: Run(folder, Lines(stage, turn, line)).go_on()):
        pass


def killed_from_outside(folder: Path, stage: str, turn: int, after: float) -> None:
    """after: seconds from the beginning of the `turn`th stage on."""
    read, write = os.pipe()
    turns = 0

    def around(what: str, act: Callable[[], Any]) -> None:
        nonlocal turns
        turns += what == stage
        if what == stage and turns == turn:
            os.write(write, b"!")
        act()

    with forked(lambda: Run(folder, around).go_on()) as child:
        os.close(write)
        os.read(read, 1)
        os.close(read)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)


def resumed(folder: Path) -> dict[str, torch.Tensor]:
    run = Run(folder, plainly)
    run.go_on()
    return run.bits()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def measured(folder: Path, stage: str, turn: int) -> tuple[int, float]:
    """(lines of a stage, seconds of a step) of a run that nobody kills."""
    counting = Lines(stage, turn)
    start = time.perf_counter()
    Run(folder, counting).go_on()
    (folder / "checkpoint").unlink()
    return counting.lines, (time.perf_counter() - start) / STEPS


def moments(folder: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(what is interrupted, what kills a run in it)."""
    draw = random.Random(0)
    for stage, turn, kills in (("reselection", 1, 2), ("reselection", 2, 4), ("checkpoint", 4, 4)):
        lines, seconds = measured(folder, stage, turn)
        for number in range(kills):
            line = 1 + int((number + draw.random()) / kills * lines)
            yield stage, functools.partial(killed_at_line, stage=stage, turn=turn, line=line)
        for _ in range(2):
            after = draw.random() * seconds
            yield stage, functools.partial(killed_from_outside, stage=stage, turn=turn, after=after)


def main(folder: Path) -> None:
    whole = folder / "whole"
    whole.mkdir()
    wanted = resumed(whole)
    told: dict[str, Any] = {"reselection": 0, "checkpoint": 0, "wrong": []}
    for number, (stage, kill) in enumerate(moments(folder)):
        place = folder / str(number)
        place.mkdir()
        kill(place)
        told[stage] += 1
        if not same(resumed(place), wanted):
            told["wrong"].append(f"{number} in a {stage}")
    print(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
