"""Switching deltas beside LoRA: the figures come, and ours leaves every bit."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
from bench import switching  # noqa: E402


def test_it_measures_both_and_tells_what_stayed(capsys):
    switching.main(["--cycles", "2"])
    *table, last = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == list(
        ("apply", "remove", "LoRA merge", "LoRA unmerge")
    )
    assert "after 3 cycles: 0.00%" in last
    assert float(last.split()[-1].rstrip("%")) > 0.1
