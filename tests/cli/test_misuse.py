"""Wrong command lines and configs: each is told key, value and way out, with exit code 2."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
import yaml


class Wrong(NamedTuple):
    """A command line that is wrong, and words that its message has: key, value, way out."""

    line: str
    words: tuple[str, ...]


def flag(line: str, *words: str) -> Wrong:
    return Wrong(line, words)


# CONFIG, MODEL, ROWS, DELTA and EMPTY stand for files and folders that are right.
LINES = [
    flag("finetuen CONFIG", "'finetuen'", "'finetune'"),
    flag("finetune CONFIG --densty 0.1", "--densty", "--density"),
    flag("finetune CONFIG --steps many", "--steps", "'many'", "whole number"),
    flag("finetune CONFIG --steps 0", "--steps", "1 or more", "'0'"),
    flag("finetune nowhere.yaml", "CONFIG", "'nowhere.yaml'", "examples/finetune.yaml"),
    flag("finetune", "model", "--model FOLDER", "--train FILE"),
    flag("finetune CONFIG --model nowhere", "model", "'nowhere'", "save_pretrained"),
    flag("finetune CONFIG --model package:none/model", "model", "'none'", "pip"),
    flag("finetune CONFIG --model EMPTY", "model", "config.json", "save_pretrained"),
    flag("finetune CONFIG --train nowhere.csv", "data.train", "'nowhere.csv'", "check the path"),
    flag("finetune CONFIG --train rows.xlsx", "data.train", "'.xlsx'", ".csv"),
    flag("finetune CONFIG --text txt", "data.text", "'txt'", "did you mean 'text'", "--text"),
    flag("finetune CONFIG --label text2", "data.label", "'text2'", "--label NAME"),
    flag("finetune CONFIG --validation 1.5", "data.validation", "less than 1", "1.5"),
    flag("finetune CONFIG --validation 0.001", "data.validation", "0.001", "larger share"),
    flag("finetune CONFIG --task classify", "task", "'classify'", "'text-classification'"),
    flag("finetune CONFIG --method lorra", "method", "'lorra'", "did you mean 'lora'"),
    flag("finetune CONFIG --method gpss", "method", "'gpss'", "did you mean 'gps'"),
    flag("finetune CONFIG --density 1.5", "--density", "'1.5'", "(0, 1]"),
    flag("finetune CONFIG --set settings.density=1.5", "settings", "density", "1.5", "(0, 1]"),
    flag("finetune CONFIG --structure colums", "settings", "structure", "'colums'", "'columns'"),
    flag("finetune CONFIG --lr -1", "training.learning_rate", "more than 0", "-1"),
    flag("finetune CONFIG --set training.batchsize=8", "training.batchsize", "'batch_size'"),
    flag("finetune CONFIG --set lr", "--set", "'lr'", "key=value"),
    flag("finetune CONFIG --set model.x=1", "model", "'model'", "mapping"),
    flag("finetune CONFIG --set data.where.sorce=new", "data.where.sorce", "'source'"),
    flag("finetune CONFIG --set data.where.source=none", "data.train", "no rows", "'none'"),
    flag("finetune CONFIG --set settings.scor=random", "settings.scor", "did you mean 'score'"),
    flag("finetune CONFIG --set settings.seed=1", "settings.seed", "training.seed"),
    flag("finetune CONFIG --set also=[clasifier.*]", "also", "clasifier"),
    flag("finetune CONFIG --set method=full", "settings.structure", "'full'", "no such setting"),
    flag("finetune CONFIG --method full --density 0.1", "settings.density", "'full'"),
    flag("finetune CONFIG --set plan=none.safetensors --set settings={}", "plan", "select"),
    flag(
        "finetune CONFIG --method lofit --set settings={} --set settings.heads=2",
        "method: 'lofit'",
        "no entries",
    ),
    flag("finetune CONFIG --method LORRA", "did you mean 'lora'"),
    flag("finetune CONFIG --set training.steps=1e99", "training.steps", "fewer digits", "1e+99"),
    flag(
        "finetune CONFIG --set training.evaluate_every=1 --validation 0", "training.evaluate_every"
    ),
    flag("finetune CONFIG --set training.arguments.dataloader_num_workers=x", "training.arguments"),
    flag("finetune CONFIG --set data.prompt=text", "data.prompt", "'text'", "task: causal-lm"),
    flag("finetune CONFIG --epochs 2", "training.epochs", "2", "leave one out"),
    flag("finetune CONFIG --set training.arguments.lerning_rate=1", "'learning_rate'"),
    flag("finetune CONFIG --set training.arguments.optim=sgd", "optim", "`method`"),
    flag("finetune CONFIG --resume", "--resume", "no checkpoint", "leave --resume out"),
    flag("finetune CONFIG --output ROWS/run", "output", "reviews.csv/run"),
    flag("finetune CONFIG --set data.max_length=64 --train LONG", "data.max_length", "64", "32"),
    flag("finetune CONFIG --output lost --lr 1e30 --steps 4", "training.learning_rate", "smaller"),
    flag("finetune CONFIG --output ROWS", "output", "is a file", "--output FOLDER"),
    flag("select CONFIG --method full --set settings={}", "method", "'full'", "select"),
    flag("estimate nowhere.json", "MODEL", "'nowhere.json'"),
    flag("estimate MODEL --density 0", "--density", "(0, 1]", "'0'"),
    flag("estimate MODEL --batch 0", "--batch", "1 or more", "'0'"),
    flag("estimate MODEL --structure lines", "--structure", "'lines'", "'columns'"),
    flag("recipes gpss", "NAME", "'gpss'", "did you mean 'gps'"),
    flag("bench CONFIG --against nothing", "--against", "'nothing'", "full"),
    flag("delta info nowhere", "DELTA", "'nowhere'", "check the path"),
    flag("delta info ROWS", "DELTA", "reviews.csv"),
    flag("delta apply MODEL DELTA", "--output", "missing", "--evaluate FILE"),
    flag("delta apply MODEL ROWS --output x", "DELTA", "reviews.csv"),
    flag("delta apply OTHER DELTA --output x", "MODEL", "not the base", "force"),
    flag("delta apply MODEL DELTA --output x --alpha nan", "alpha", "nan", "finite"),
    flag("delta apply MODEL DELTA --output ROWS", "--output", "reviews.csv", "is a file"),
    flag("delta apply MODEL DELTA --output MODEL", "--output", "encoder", "written over"),
    flag("delta remove MODEL DELTA --output MODEL", "--output", "encoder", "give another one"),
    flag("delta remove MODEL DELTA --output x", "DELTA", "does not know", "keep_origin: true"),
    flag("delta merge DELTA DELTA --output x.safetensors", "rule", "'ties'"),
    flag("delta merge DELTA --rule best --output x.safetensors", "rule", "'best'", "'mean'"),
    flag("delta export DELTA --output x --format onnx", "--format", "'onnx'", "'lora'"),
    flag("delta export DELTA --output x", "--base MODEL"),
]
CONFIGS = [
    Wrong("methd: gps", ("methd", "did you mean 'method'")),
    Wrong("batch_size: 8", ("batch_size", "under `training:`")),
    Wrong("training: {lean: true}", ("training.lean", "top of the file")),
    Wrong("training: {steps: 2.5}", ("training.steps", "2.5", "whole number")),
    Wrong("training: {steps: true}", ("training.steps", "True", "number")),
    Wrong("training: {dtype: int8}", ("training.dtype", "'int8'", "'bfloat16'")),
    Wrong("training: fast", ("training", "'fast'", "key: value")),
    Wrong("also: classifier.*", ("also", "'classifier.*'", "a list")),
    Wrong("lean: perhaps", ("lean", "'perhaps'", "true or false")),
    Wrong("lean: true\nlean: false", ("'lean'", "twice", "line 4")),
    Wrong("settings: [", ("CONFIG", "no YAML", "line")),
    Wrong("? [a]\n: b", ("CONFIG", "a key is a list", "line 3")),
    Wrong("1: 2", ("1", "text as a key")),
    Wrong("output: ''", ("output", "a path", "''")),
    Wrong("training: {steps: 1}\nplan: ''", ("plan", "a path", "''")),
    Wrong("- a\n- b", ("CONFIG",)),
]
NOT_A_MAPPING = "- a\n- b"


@pytest.fixture(scope="module")
def places(tmp_path_factory, encoder, rows):
    """{word of a line: the path it stands for}."""
    from sparse_ft.cli.main import main

    here = tmp_path_factory.mktemp("wrong")
    config = here / "right.yaml"
    document = {
        "model": str(encoder),
        "data": {"train": str(rows), "max_length": 12},
        "settings": {"structure": "columns"},
        "training": {"steps": 2, "cpu": True},
        "output": str(here / "run"),
    }
    config.write_text(yaml.safe_dump(document))
    (here / "empty").mkdir()
    long = " ".join(["word"] * 50)
    (here / "long.csv").write_text("text,label\n" + f"{long},x\n{long},y\n" * 8)
    assert main(["finetune", str(config), "--output", str(here / "trained")]) == 0
    torch.manual_seed(1)
    other = transformers.AutoModel.from_pretrained(encoder)
    other.embeddings.word_embeddings.weight.data.normal_()
    other.save_pretrained(here / "other")
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(here / "other")
    return {
        "CONFIG": config,
        "MODEL": encoder,
        "OTHER": here / "other",
        "ROWS": rows,
        "DELTA": here / "trained",
        "EMPTY": here / "empty",
        "LONG": here / "long.csv",
    }


def placed(word: str, places: dict[str, Path]) -> str:
    """The word of a line, or the path that it stands for."""
    name, slash, rest = word.partition("/")
    return f"{places[name]}{slash}{rest}" if name in places else word


def check(command, arguments: list[str], words: tuple[str, ...]) -> str:
    """What is wrong with the answer to a wrong command line; "" where nothing is."""
    done = command(*arguments)
    told = " ".join(done.err.split())
    absent = [word for word in words if word not in told]
    if done.code == 2 and not absent and "Traceback" not in told and len(told) < 900:
        return ""
    return f"{' '.join(arguments)}: code {done.code}, lacks {absent}: {told}"


def test_wrong_lines_are_told_key_value_and_way_out(command, places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.xlsx").write_text("")
    failed = []
    for line, words in LINES:
        arguments = [placed(word, places) for word in line.split()]
        failed.append(check(command, arguments, words))
    assert not list(filter(None, failed)), "\n".join(filter(None, failed))
    assert len(LINES) + len(CONFIGS) >= 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lost", "rows.xlsx"]


def test_wrong_configs_are_told_key_value_and_way_out(command, places, rows, tmp_path):
    failed = []
    for text, words in CONFIGS:
        file = tmp_path / "wrong.yaml"
        head = f"model: {places['MODEL']}\ndata: {{train: {rows}}}\n"
        file.write_text(text if text == NOT_A_MAPPING else head + text)
        failed.append(check(command, ["finetune", str(file)], (*words, "wrong.yaml")))
    assert not list(filter(None, failed)), "\n".join(filter(None, failed))


def test_a_run_goes_on_with_what_it_began_with(command, places):
    done = command(
        "finetune", places["CONFIG"], "--output", places["DELTA"], "--resume", "--density", 0.2
    )
    assert done.code == 2
    assert "settings.density" in done.err and "0.2" in done.err and "--overwrite" in done.err
