"""Saves deltas in processes that are killed at random moments: `delta_killed.py FOLDER TIMES`.

After each SIGKILL the file is the old one or the new one, whole. Prints how often it was which, and
how many kills came in the middle of a save.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import small_deltas
import torch

import sparse_ft as sft


def save_for_ever(deltas, path, saved):
    """Save one delta after the other; tell each save by a byte to `saved`."""
    while True:
        for delta in deltas:
            sft.save_delta(delta, path)
            os.write(saved, b".")


def main(folder, times):
    path = Path(folder) / "delta"
    deltas = [sft.Delta.of(small_deltas.trained(steps=steps)) for steps in (1, 2)]
    contents = []
    for delta in deltas:
        sft.save_delta(delta, path)
        contents.append(path.read_bytes())
    start = time.perf_counter()
    for delta in deltas:
        sft.save_delta(delta, path)
    one_save = (time.perf_counter() - start) / 2
    draw, told = random.Random(0), {"old": 0, "new": 0, "in the middle": 0}
    for _ in range(times):
        told_by_child, saved = os.pipe()
        child = os.fork()
        if child == 0:
            save_for_ever(deltas, path, saved)
        os.close(saved)  # the child's end is the only one: if it dies, reading ends
        # the moment is told by what was saved, not by the clock: a loaded machine saves late
        for _ in range(draw.randrange(1, 5)):
            os.read(told_by_child, 1)
        time.sleep(draw.uniform(0, 1) * one_save)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told_by_child)
        told["in the middle"] += len(os.listdir(folder)) > 1
        told[("old", "new")[contents.index(path.read_bytes())]] += 1
        sft.save_delta(deltas[0], path)
        assert os.listdir(folder) == ["delta"]  # what the killed process left is gone
    print(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]))
