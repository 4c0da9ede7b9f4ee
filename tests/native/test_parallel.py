"""How many threads a call wakes."""

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
sys.path.append(sys.argv[1])
import core
import torch
torch.set_num_threads(1)  # threads that appear are ours: core asks for 2

def tensors(count, size):
    def tensor():
        made = {name: torch.ones(size) for name in ("value", "grad", "exp_avg", "exp_avg_sq")}
        return made | hyper

    hyper = dict(lr=1e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1, step=torch.zeros(()))
    return [tensor() for _ in range(count)]

def move(rows):
    matrix, layout = torch.zeros(rows, 64), ("all", torch.empty(0, dtype=torch.int64), 1, 1)
    values = core.gather(matrix, layout, torch.empty(rows, 64))
    core.scatter_(matrix, values, layout)

def threads():
    return len(os.listdir("/proc/self/task"))

few = tensors(7, 256), tensors(112, 256)
many = tensors(2, 1 << 18)
alone = threads()
for tiny in few:
    core.adamw_(tiny, skip_nonfinite=True)
move(100)
assert threads() == alone, "tiny work woke a thread"
for large in (lambda: core.adamw_(many), lambda: move(1 << 14)):  # each of them first
    child = os.fork()
    if not child:
        alone = threads()  # the caller alone
        large()
        assert threads() == alone + 1, "large work did not"
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of /proc")
def test_tiny_work_wakes_no_thread_and_large_work_does():
    folder = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
