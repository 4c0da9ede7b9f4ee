"""`sparse-ft finetune`: from rows to a delta, broken off and gone on with."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import sparse_ft as sft
from sparse_ft.cli import training

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "finetune.yaml"


def same(one: Path, other: Path) -> bool:
    """Whether two runs have trained the same weights, bit for bit."""
    a, b = sft.load_delta(one), sft.load_delta(other)
    assert list(a) == list(b) and a.entries == b.entries
    return all(torch.equal(a[name].values, b[name].values) for name in a)


def test_a_run_ends_with_a_delta_that_gives_the_accuracy_it_reported(
    command, config, encoder, tmp_path
):
    run = tmp_path / "run"
    done = command(
        "finetune", config, "--lean", "--json", "--steps", 40, "--density", 0.3, "--lr", 2e-2
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told == json.loads((run / "results.json").read_text())
    assert told["evaluated"]["accuracy"] > 0.8 and told["evaluated"]["examples"] == 18
    assert 0 < told["trainable"] < 0.3 * told["of"]
    applied = command(
        "delta", "apply", encoder, run, "--evaluate", run / "validation.jsonl", "--json",
        "--output", tmp_path / "model",
    )  # fmt: skip
    found = json.loads(applied.out)
    assert found["training_reported"] == told["evaluated"]
    assert {name: found[name] for name in told["evaluated"]} == told["evaluated"]
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert whole.config.id2label == {0: "bad", 1: "good"}


def test_the_example_trains_on_rows_of_ones_own(command, encoder, rows, tmp_path):
    """The config of the README; test_real_encoder.py has it as it is."""
    own = ("--model", encoder, "--train", rows, "--set", "data.where={source: new}")
    short = ("--steps", 2, "--density", 0.1, "--set", "training.cpu=true")
    done = command("finetune", EXAMPLE, *own, *short, "--output", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 2
    assert len((tmp_path / "run" / "validation.jsonl").read_text().splitlines()) == 4  # of 48


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_weights(
    command, config, tmp_path, interrupted
):
    done = command("finetune", config)
    assert done.code == 130, done.err
    assert "stopped after step 3" in done.err and f"{tmp_path / 'run'} --resume" in done.err
    assert not (tmp_path / "run" / "delta.safetensors").exists()
    interrupted()
    assert "--resume goes on" in command("finetune", config).err
    done = command("finetune", tmp_path / "run", "--resume")
    assert done.code == 0 and "goes on from" in done.out, done.err
    whole = tmp_path / "whole"
    assert command("finetune", config, "--output", whole).code == 0
    assert same(tmp_path / "run", whole)


@pytest.mark.parametrize("method", ["gps", "lift"])
def test_a_recipe_goes_on_to_the_same_weights(command, config, tmp_path, interrupted, method):
    settings = (
        "--set",
        "settings={density: 0.05, every: 2}" if method == "lift" else "settings={}",
    )
    asked = ("finetune", config, "--method", method, *settings)
    assert command(*asked).code == 130
    interrupted()
    done = command(*asked, "--resume")
    assert done.code == 0, done.err
    assert command(*asked, "--output", tmp_path / "whole").code == 0
    assert same(tmp_path / "run", tmp_path / "whole")


def test_full_and_lora_train_for_comparison(command, config, tmp_path, encoder):
    plain = ("finetune", config, "--json")
    done = command(*plain, "--method", "full", "--output", tmp_path / "full")
    assert "left out: settings, training.learning_rate" in done.err
    told = json.loads(done.out)
    assert told["trainable"] == told["of"]
    transformers.AutoModelForSequenceClassification.from_pretrained(told["model"])
    peft = pytest.importorskip("peft")
    done = command(*plain, "--method", "lora", "--output", tmp_path / "lora")
    told = json.loads(done.out)
    assert 0 < told["trainable"] < 0.5 * told["of"]
    base = transformers.AutoModelForSequenceClassification.from_pretrained(encoder)
    peft.PeftModel.from_pretrained(base, told["adapter"])


def test_a_head_that_is_there_keeps_its_classes_or_trains_anew(command, config, encoder, tmp_path):
    kinds = transformers.AutoModelForSequenceClassification
    for name, labels in (("same", ["good", "bad"]), ("other", ["yes", "no"])):
        told = {"num_labels": 2, "id2label": dict(enumerate(labels))}
        kinds.from_pretrained(encoder, **told).save_pretrained(tmp_path / name)
        transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / name)
        run = tmp_path / f"run-{name}"
        line = ("finetune", config, "--model", tmp_path / name, "--steps", 1, "--output", run)
        done = command(*line)
        assert done.code == 0, done.err
        delta = sft.load_delta(run)
        assert ("classifier.weight" in delta) == (name == "other")
        order = ["good", "bad"] if name == "same" else ["bad", "good"]
        assert delta.recipe["encoder"]["labels"] == order


def test_a_dry_run_says_plan_share_and_bytes_and_writes_nothing(command, config, tmp_path):
    done = command("finetune", config, "--dry-run")
    assert done.code == 0, done.err
    for words in ("columns", "trainable", "most at once", "6 steps"):
        assert words in done.out
    told = json.loads(command("finetune", config, "--dry-run", "--json").out)
    assert told["rows"] == {"train": 54, "validation": 18} and told["bytes"]["peak"] > 0
    assert told["plan"]["classifier.weight"] == "all"
    assert told["trainable"] == sum(
        2 * 32 if name == "classifier.weight" else 2 if what == "all" else what["entries"]
        for name, what in told["plan"].items()
    )
    assert not (tmp_path / "run").exists()


def test_a_language_model_learns_from_text_and_from_prompts(command, config, decoder, tmp_path):
    lines = [{"ask": "it was", "say": "a good film"}, {"ask": "the book was", "say": "dull"}] * 8
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, lines)))
    prose = tmp_path / "prose.txt"
    prose.write_text("\n\n".join(["it was a good film", "the book was dull"] * 8))
    causal = ("finetune", config, "--model", decoder, "--task", "causal-lm", "--json")
    causal += ("--density", 0.5, "--lr", 3e-2, "--set", "also=[lm_head.weight]")
    columns = ("--text", "say", "--set", "data.prompt=ask")
    for file, more in ((prose, ()), (pairs, columns)):
        run = tmp_path / file.stem
        done = command(*causal, "--train", file, "--steps", "30", "--output", run, *more)
        assert done.code == 0, done.err
        told = json.loads(done.out)["evaluated"]
        assert told["perplexity"] < 6  # of 23 words
        applied = command(
            "delta", "apply", decoder, run, "--evaluate", run / "validation.jsonl", "--json"
        )
        assert json.loads(applied.out)["perplexity"] == told["perplexity"]


def test_what_a_full_disk_has_cut_is_passed_over(command, config, tmp_path):
    """A checkpoint that is not whole; the one before it goes on to the same weights."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert command("finetune", config).code == 0
    shutil.copytree(run, whole)
    (run / "results.json").unlink()
    (run / "checkpoint-6" / "model.safetensors").write_bytes(b"cut")
    done = command("finetune", run, "--resume")
    assert done.code == 0 and f"goes on from {run / 'checkpoint-4'}" in done.out, done.err
    assert same(run, whole)

    again = command("finetune", run, "--resume")
    assert again.code == 2 and "has done its 6 steps" in again.err and "--steps N" in again.err
    (run / "results.json").unlink()  # it was ended before it had told
    done = command("finetune", run, "--resume", "--json")
    assert json.loads(done.out)["steps"] == 6 and "checkpoint-4" in done.err  # not a seventh
    assert same(run, whole)


class Full:
    """A file system that says that it has no room."""

    total = used = free = 0


def test_a_full_disk_is_told_and_no_bug_is_taken_for_it(command, config, tmp_path, monkeypatch):
    class Fails(transformers.TrainerCallback):
        def on_save(self, *arguments, **kwargs):
            raise RuntimeError("writing failed")  # as torch.save does

    made = training.trainer_of
    monkeypatch.setattr(training, "trainer_of", lambda *most: made(*most[:-1], [Fails()]))
    with pytest.raises(RuntimeError, match="writing failed"):
        command("finetune", config)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: Full)
        done = command("finetune", config, "--overwrite")
    assert done.code == 2 and "the disk of" in done.err and "--resume" in done.err
    (tmp_path / "file").touch()
    done = command("finetune", config, "--output", tmp_path / "file" / "run")
    assert done.code == 2 and "output" in done.err


def test_a_warning_is_a_sentence(command, config, tmp_path):
    """Of too low a density; no line of source, and it stands beside the results."""
    done = command("finetune", config, "--dry-run", "--density", 0.001, "--json")
    assert done.code == 0 and json.loads(done.out)["trainable"] > 0
    told = [line for line in done.err.splitlines() if "less than one column" in line]
    assert told and all(line.startswith("sparse-ft: warning: density: 0.001") for line in told)
    assert "callback" not in done.err and "UserWarning" not in done.err
