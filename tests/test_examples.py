"""The examples do what they say, run as a user runs them."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import trl_runs

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.skipif(sys.platform != "linux", reason="the cap is Linux's")
def test_twice_the_batch_fits_under_the_same_cap():
    pytest.importorskip("transformers")
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "twice_the_batch.py"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    last = ran.stdout.splitlines()[-1].split()
    full, ours = int(last[3]), int(last[-3])
    assert ours >= 2 * full > 0


@pytest.mark.skipif(sys.platform != "linux", reason="the cap is Linux's")
def test_a_cap_below_one_batch_is_not_called_a_success():
    pytest.importorskip("transformers")
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "twice_the_batch.py", "20"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 1 and "0 sequences" in ran.stdout


def test_an_engine_in_another_process_holds_the_trainers_bits():
    ran = subprocess.run(
        [sys.executable, EXAMPLES / "async_engine.py", "8"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    *steps, last = ran.stdout.splitlines()
    assert last == "engine and trainer hold the same bits" and len(steps) == 8
    assert all(float(line.split()[-3]) <= 2 for line in steps)


# On the CPU DeepSpeed compiles operators of its own for a minute, which no page needs.
UNCOMPILED = """
import runpy, sys
import deepspeed
for name in deepspeed.ops.__compatible_ops__:
    deepspeed.ops.__compatible_ops__[name] = False
sys.argv.pop(0)
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PAGES = {
    "plain_loop": (),
    "transformers_trainer": (),
    "accelerate_loop": ("accelerate",),
    "lightning_fit": ("lightning",),
    "trl_sft": ("trl", "datasets", "peft"),
    "trl_dpo": ("trl", "datasets", "peft"),
    "deepspeed_zero 1": ("deepspeed",),
    "deepspeed_zero 2": ("deepspeed",),
}


def free_port() -> str:
    """One of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_a_trainer_trains(page, tmp_path):
    """Its losses fall; the page fits on one screen."""
    trl_runs.make_importable("transformers", *PAGES[page])
    name, *arguments = page.split()
    script = EXAMPLES / "trainers" / f"{name}.py"
    assert script.read_text().count("\n") <= 30
    loopback = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "DS_ACCELERATOR": "cpu"}
    environment = {**os.environ, **loopback, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(trl_runs.FOLDER)
    ran = subprocess.run(
        [sys.executable, *(["-c", UNCOMPILED] if arguments else []), script, *arguments],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    losses = [float(x) for x in re.findall(r"^loss (\d+\.\d+)$", ran.stdout, re.M)]
    assert len(losses) >= 20 and sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses


METHODS = ("gmt", "bi_drop", "subtuning", "autopeft")


def test_a_page_a_method_that_is_an_outer_loop_learns(tmp_path):
    """One process for all: each ends with an accuracy that guessing does not reach."""
    run_all = (
        "import runpy, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    print('page', name)\n"
        "    runpy.run_path(f'{sys.argv[1]}/{name}.py', run_name='__main__')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", run_all, EXAMPLES / "methods", *METHODS],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = dict(page.split("\n", 1) for page in ran.stdout.split("page ")[1:])
    assert tuple(told) == METHODS
    for name, text in told.items():
        accuracy = float(re.findall(r"^accuracy (\d\.\d+)$", text, re.M)[-1])
        assert accuracy > 0.6, (name, text)  # of three classes
