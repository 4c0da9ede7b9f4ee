"""`torchrun -m sparse_ft.cli finetune`: two processes train one model, and one of them writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers.exhaustive import slow

ROOT = Path(__file__).resolve().parents[2]
RUN = "-m torch.distributed.run --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0"


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """What two processes ended with."""
    line = [sys.executable, *RUN.split(), "-m", "sparse_ft.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


@slow
def test_two_processes_train_one_model(command, config, encoder, tmp_path):
    run = tmp_path / "run"
    done = torchrun("finetune", config, "--steps", 20, "--batch-size", 4, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)  # one of them speaks
    assert told["steps"] == 20 and (run / "delta.safetensors").is_file()
    rows = run / "validation.jsonl"
    applied = command("delta", "apply", encoder, run, "--evaluate", rows, "--cpu", "--json")
    assert json.loads(applied.out)["accuracy"] == told["evaluated"]["accuracy"]

    wrong = torchrun("finetune", config, "--method", "gpss", "--output", tmp_path / "no")
    assert wrong.returncode != 0 and "did you mean 'gps'" in wrong.stderr
    assert wrong.stderr.count("sparse-ft: error") == 1
