"""Progress while choosing: tqdm's bar where there is tqdm, lines otherwise, nothing where nobody
looks.
"""

import sys

import pytest
import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.salience import progress


def choose(**keywords):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    batches = [torch.randn(2, 8) for _ in range(3)]
    sft.select(model, density=0.5, batches=batches, loss=lambda m, b: m(b).sum(), **keywords)


def test_a_pipe_gets_none_by_default(capsys):
    choose()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_it_by_default(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.is_shown(None) and not progress.is_shown(False)


def test_tqdm_shows_batches_and_weights(capsys):
    pytest.importorskip("tqdm")
    choose(progress=True)
    text = capsys.readouterr().err
    assert (
        "gradients of batches" in text
        and "0/3" in text
        and "choosing in weights" in text
        and "0/2" in text
    )
    # One bar after the other.
    assert text.index("choosing in weights") > text.rindex("gradients of batches")


def test_without_tqdm_lines_on_stderr(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    choose(progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "gradients of batches: 2 of 3 done" in captured.err
    assert list(progress.followed(iter("ab"), "label", None, True)) == ["a", "b"]
    assert "label: 1 done" in capsys.readouterr().err


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.ones(4, 8))


def test_a_loader_of_unknown_length():
    loader = torch.utils.data.DataLoader(Stream(), batch_size=2)
    assert (
        progress.number_of(loader) is None
        and progress.number_of([1, 2]) == 2
        and progress.number_of(iter(())) is None
    )
    model = nn.Sequential(nn.Linear(8, 8))
    plan = sft.select(model, density=0.5, batches=loader, loss=lambda m, b: m(b).sum())
    assert len(plan["0.weight"]) == 4
