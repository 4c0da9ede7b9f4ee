"""The GEMM rate of a run is that of the fastest product at hand, and the run says whose."""

import pytest

pytest.importorskip("tqdm")

from bench import ceilings, suite, table  # noqa: E402
from sparse_ft.ops import _native  # noqa: E402


def slow_torch(monkeypatch):
    """A machine on which torch's product is not the fastest."""
    fast = {"copy": 1.0, "triad": 1.0, "float32 by torch": 2.0, "float32 by panels": 1.0}
    rounds = {name: {0: seconds} for name, seconds in fast.items()}
    monkeypatch.setattr(ceilings, "rounds", lambda calls, *a, **k: {n: rounds[n] for n in calls})
    calls = {"torch": None, "panels": None}
    monkeypatch.setattr(ceilings, "products", lambda side, dtype, device: calls)


def test_the_fastest_product_gives_the_rate(monkeypatch):
    slow_torch(monkeypatch)
    found = ceilings.measure(array=8, gemm=16)
    assert found.gemm == {"float32": 2 * 16**3 / 1.0} and found.by == {"float32": "panels"}


def test_the_better_of_two_runs_brings_its_product():
    first = ceilings.Ceilings(1.0, 1.0, {"float32": 1.0}, {"float32": "torch"})
    second = ceilings.Ceilings(2.0, 0.5, {"float32": 3.0}, {"float32": "oneDNN"})
    for best in (first.best(second), second.best(first)):
        assert best == ceilings.Ceilings(2.0, 1.0, {"float32": 3.0}, {"float32": "oneDNN"})


def test_the_table_says_whose_product_it_was(monkeypatch):
    slow_torch(monkeypatch)
    found = suite.Found(1, ceilings.measure(array=8, gemm=16))
    line = table.ceilings(suite.ceiling_records("linear", found), 1)
    assert "GEMM float32" in line and "(by panels)" in line


def test_every_product_multiplies_the_same():
    import torch

    found = ceilings.products(32, torch.float32)
    assert ("panels" in found) == (_native.C is not None)
    assert all(call().shape == (32, 32) for call in found.values())
