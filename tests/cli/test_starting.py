"""`sparse-ft` starts at once, and says what is not installed."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Seconds of a processor, not of a clock: on a machine that does nothing else they are the same, and
# other programs, which make the clock's more, leave them. A slow machine, or a core shared with
# another program, has as many as it takes to import what makes the help.
MOST, LIBRARY = 0.5, "import typer, rich.table, rich.panel"


def run(*arguments: str) -> tuple[subprocess.CompletedProcess, float]:
    """(what it ended with, the seconds of a processor that it took)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, took


def test_help_comes_at_once_and_imports_no_torch():
    times = []
    for command in ([], ["finetune"], ["delta", "apply"]):
        done, seconds = run("-m", "sparse_ft_command", *command, "--help")
        assert done.returncode == 0 and "Usage: sparse-ft" in done.stdout, done.stderr
        times.append(seconds)
    library = min(run("-c", LIBRARY)[1] for _ in range(2))
    assert min(times) < max(MOST, 5 * library)
    script = (
        "import sys; from sparse_ft_command import main; sys.argv[1:] = ['finetune', 'none.yaml'];"
        " code = main(); assert not {'torch', 'transformers', 'numpy'} & set(sys.modules);"
        " sys.exit(code)"
    )
    done, _ = run("-c", script)
    assert done.returncode == 2 and "none.yaml" in done.stderr and "Trace" not in done.stderr


@pytest.mark.parametrize("missing", ["typer", "yaml"])
def test_a_missing_extra_is_named(missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None; from sparse_ft_command import main;"
        " sys.argv[1:] = ['finetune', 'none.yaml']; sys.exit(main())"
    )
    done, _ = run("-c", script)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert missing in done.stderr and "pip install sparse_ft[cli]" in done.stderr


def test_the_entry_point_is_declared():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'sparse-ft = "sparse_ft_command:main"' in text
    assert 'py-modules = ["sparse_ft_command"]' in text
