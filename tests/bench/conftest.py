"""The benchmarks run from the repository's root and are not installed.

Importable, but behind the installed packages.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a GPU run puts its results; a run of its own."""
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("RUN", "this")
    return tmp_path
