"""Which machine, which build: the line that stands over every table."""

import datetime
import os
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def _cpuinfo(field):
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{field}\s*:\s*(.*)$", text, re.M)
    return found.group(1) if found else ""


def cpu_model():
    return _cpuinfo("model name") or "unknown CPU"


def isa():
    """What torch dispatches to, and the bf16 instructions of the CPU, if any: "AVX512 bf16"."""
    flags = set(_cpuinfo("flags").split())
    return torch.backends.cpu.get_cpu_capability() + (" bf16" if has_bf16(flags) else "")


def has_bf16(flags=None):
    """Whether the CPU multiplies bf16 itself.

    Elsewhere torch's bf16 product is a loop of conversions.
    """
    flags = set(_cpuinfo("flags").split()) if flags is None else flags
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit():
    """Short hash, with a + where the sources that are measured differ from it.

    "unknown" outside of a checkout.
    """

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--untracked-files=no", "--", "sparse_ft", "csrc", "kernels"
        )
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def name():
    """Name of the machine's files under results/: what it is, not what it is called."""
    words = re.sub(r"\((r|tm)\)|cpu|processor|@.*", " ", cpu_model().lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{words} {cores()}-cores {isa().lower()}").strip("-")


def line():
    """One line on the machine and the build."""
    return (
        f"{cpu_model()}, {isa()}, {cores()} cores; torch {torch.__version__}; commit {commit()}; "
        f"{datetime.date.today().isoformat()}"
    )
