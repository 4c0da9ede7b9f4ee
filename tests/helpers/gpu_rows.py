"""What a stage of bench/gpu.sh has found so far."""

from pathlib import Path

import torch

from bench import gpu_results

CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--size", "tiny", "--seconds", "0.001"]


def found(folder: Path, stage: str) -> list[gpu_results.Row]:
    return [row for row in gpu_results.read(folder) if row.stage == stage]
