"""README's examples run as they are written, one after another, on a small model."""

import copy
import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """What the examples start from: `model` and `batches`, in a folder that may be written to."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 200,
        "intermediate_size": 400,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 50,
    }
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    batches = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(50, (8, 12), generator=generator)
        batches.append({"input_ids": tokens, "labels": tokens[:, 0] % 2})
    return {"model": model, "batches": batches}


def test_there_are_examples():
    assert len(BLOCKS) >= 2 and "recipes.get" in BLOCKS[0] and "lean=True" in BLOCKS[0]


# Not what a finalizer of another test's object has to say, whenever it is called.
@pytest.mark.filterwarnings("error::UserWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_examples_run(small, capsys, tmp_path):
    model = small["model"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exec(compile(BLOCKS[0], "README.md, first example", "exec"), small)
    printed = capsys.readouterr().out
    assert (
        "bert.encoder.layer.*.attention.self.query.weight ×2" in printed
        and "SelectiveLinear" in printed
    )
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name: (after[name] != before[name]).float().mean().item() for name in before}
    assert (
        changed["classifier.weight"] == 1
        and 0.005 < changed["bert.encoder.layer.1.output.dense.weight"] <= 0.02
    )
    assert changed["bert.embeddings.word_embeddings.weight"] == 0
    loaded = type(model).from_pretrained(tmp_path / "trained").state_dict()
    assert all(torch.equal(loaded[name], after[name]) for name in after)
    trained = copy.deepcopy(model)
    for number, block in enumerate(BLOCKS[1:], 2):
        # Others go on where the last one ended.
        if "convert(" in block or "get_peft_model(" in block:
            small["model"], small["base"] = copy.deepcopy(trained), copy.deepcopy(trained)
        exec(compile(block, f"README.md, example {number}", "exec"), small)
    assert capsys.readouterr().out
