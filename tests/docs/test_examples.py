"""Examples without a trainer, and the notebook: run from start to end, and held to what they say.

Those with a trainer, an engine in another process and a memory cap: tests/test_examples.py.
"""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers import pages

import sparse_ft as sft

pytest.importorskip("transformers")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def told(capsys, monkeypatch, tmp_path):
    """(name, arguments) -> what an example prints; it runs here, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            assert not end.code, capsys.readouterr().out
        return capsys.readouterr().out

    return run


def numbers(text: str, name: str) -> list[float]:
    return [float(found) for found in re.findall(rf"{name} (\d\.\d+)", text)]


def test_text_classification(told):
    learnt, applied = numbers(told("text_classification.py"), "accuracy")
    assert learnt > 0.9 and applied == learnt


def test_text_classification_of_ones_own_files(told, tmp_path):
    pages.write_encoder(tmp_path / "model")
    pages.write_reviews(tmp_path / "reviews.csv")
    learnt, applied = numbers(told("text_classification.py", "model", "reviews.csv"), "accuracy")
    assert applied == learnt and Path("delta.safetensors").stat().st_size > 1000


def test_vision_transformer(told, tmp_path):
    text = told("vision_transformer.py")
    losses = numbers(text, "loss")
    assert len(losses) == 40 and sum(losses[-5:]) < 0.2 * sum(losses[:5])
    assert numbers(text, "accuracy")[-1] > 0.9 and (tmp_path / "trained/config.json").is_file()


def test_serving_many_deltas(told):
    text = told("serve_deltas.py")
    assert "30 requests to 3 tasks" in text and "the base is what it was" in text
    assert "every answer has the bits of its own model" in text


def shape_of(text: str) -> set[str]:
    """The lines of a text, without its numbers and how these are aligned."""
    return {re.sub(r"[\d.,]+", "#", re.sub(r"\s+", " ", line)) for line in text.splitlines()}


def test_the_notebook_runs_from_start_to_end(monkeypatch, tmp_path, capsys):
    """And shows what it showed when it was saved, sizes and losses apart."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "first_delta.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec(compile("".join(cell["source"]), "first_delta.ipynb", "exec"), names)
        saved = "".join("".join(output.get("text", "")) for output in cell["outputs"])
        # Libraries print warnings in between; numbers differ from machine to machine.
        assert shape_of(saved) <= shape_of(capsys.readouterr().out)
    losses = names["losses"]
    assert losses[-1] < 0.95 * losses[0] and names["same"] and names["restored"]
    assert torch.equal(names["plan"]["model.layers.0.self_attn.q_proj.weight"].index,
                       sft.load_delta("first.safetensors").plan[
                           "model.layers.0.self_attn.q_proj.weight"].index)  # fmt: skip
