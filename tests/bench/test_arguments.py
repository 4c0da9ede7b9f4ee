"""Counts on the command lines of `python -m bench.…` are counts."""

import argparse

import pytest

pytest.importorskip("transformers")

from bench import arguments, contextual, experts, host_time, saved  # noqa: E402


def test_a_count_is_from_1_on():
    assert arguments.positive("12") == 12
    for wrong in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"1 or more, got {wrong!r}"):
            arguments.positive(wrong)


@pytest.mark.parametrize("page", [contextual, experts, host_time, saved])
def test_a_command_refuses_none_before_it_measures(page, monkeypatch, capsys):
    option = "--batch" if page is saved else "--rounds"
    monkeypatch.setattr("sys.argv", ["bench", option, "0"])
    with pytest.raises(SystemExit) as ended:
        page.main()
    assert ended.value.code == 2
    assert (
        f"argument {option}: expected a whole number, 1 or more, got '0'" in capsys.readouterr().err
    )
