"""Poisoned memory for every kernel test, recorded launches, and a summary line for tests in a
process of their own.
"""

import sys
from pathlib import Path

import pytest
import torch

# `import compiled`, which importlib mode would not find
sys.path.append(str(Path(__file__).parent))

CHECK = "check_tensors"  # of a launcher: it asks for a CUDA device


@pytest.fixture(autouse=True)
def poison():
    """torch.empty gives NaN, so that a value that no program wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def nothing_is_known_of_an_index():
    """Of the indices that tests share: what one test has set aside must not serve another."""
    tables = sys.modules.get("sparse_ft.kernels.selected_wgrad_tables")
    if tables is not None:
        tables._kept.clear()


@pytest.fixture
def record(monkeypatch):
    """record(module, kernel name) -> the launches that follow."""
    from compiled import Recorder

    def replace(module, name):
        kernel = getattr(module, name)
        recorder = Recorder(kernel.kernel if isinstance(kernel, Recorder) else kernel)
        monkeypatch.setattr(module, name, recorder)
        for name, each in list(sys.modules.items()):  # launchers and the tables that they make
            if name.startswith(f"{module.__name__.rpartition('.')[0]}.") and hasattr(each, CHECK):
                monkeypatch.setattr(each, CHECK, lambda **_: None)
        return recorder.launches

    return replace


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "kernels" and report.when == "call":
                terminalreporter.write_line(value)
