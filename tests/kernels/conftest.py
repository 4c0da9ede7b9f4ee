"""Poisoned memory for every kernel test, and one summary line for the tests that run in a process of their own."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poison():
    """torch.empty gives NaN, so that a value that no program wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties:
            if name == "kernels" and report.when == "call":
                terminalreporter.write_line(value)
