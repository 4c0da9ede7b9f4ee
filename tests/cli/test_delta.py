"""`sparse-ft delta …`: into a model and out of it, merged, composed, exported."""

import json

import pytest
import torch
import transformers

import sparse_ft as sft


@pytest.fixture(scope="module")
def trained(tmp_path_factory, encoder, rows):
    """Folders of two runs that know their base, of other columns each."""
    from sparse_ft.cli.main import main

    here = tmp_path_factory.mktemp("trained")
    folders = []
    for name, targets in (("one", "*query.weight"), ("two", "*value.weight")):
        line = f"finetune --model {encoder} --train {rows} --steps 4 --structure columns"
        line += f" --density 0.2 --output {here / name} --set keep_origin=true"
        more = ["--set", f"settings.targets={targets!r}", "--set", "training.cpu=true"]
        assert main([*line.split(), *more]) == 0
        folders.append(here / name)
    return folders


def state(folder):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    return model.state_dict()


def test_what_goes_in_comes_out_bit_for_bit(command, encoder, trained, tmp_path):
    one, _ = trained
    tuned, back = tmp_path / "tuned", tmp_path / "back"
    assert command("delta", "apply", encoder, one, "--output", tuned).code == 0
    assert command("delta", "remove", tuned, one, "--output", back).code == 0
    before = transformers.BertModel.from_pretrained(encoder).state_dict()
    after, within = state(back), state(tuned)
    assert all(torch.equal(after[f"bert.{name}"], before[name]) for name in before)
    assert any(not torch.equal(within[name], after[name]) for name in after)
    refused = command("delta", "remove", back, one, "--output", tmp_path / "again")
    assert refused.code == 2 and "MODEL" in refused.err


def test_info_says_what_training_reported(command, trained):
    one, _ = trained
    told = json.loads(command("delta", "info", one, "--json").out)
    results = json.loads((one / "results.json").read_text())
    assert told["recipe"]["evaluated"] == results["evaluated"] and told["knows_the_base"]
    assert told["entries"] == results["entries"] > 0
    shown = command("delta", "info", one).out
    assert "columns" in shown and "accuracy" in shown


def test_merged_deltas_and_composed_ones_are_what_the_library_makes(
    command, encoder, trained, tmp_path
):
    one, two = trained
    merged = tmp_path / "merged.safetensors"
    rule = ("--rule", "sum", "--weight", 1, "--weight", 0.5)
    assert command("delta", "merge", one, two, *rule, "--output", merged).code == 0
    by_hand = sft.merge([sft.load_delta(one), sft.load_delta(two)], "sum", weights=[1.0, 0.5])
    found = sft.load_delta(merged)
    assert list(found) == list(by_hand)
    assert all(torch.equal(found[name].values, by_hand[name].values) for name in found)

    rows = one / "validation.jsonl"
    judged = command("delta", "apply", encoder, merged, "--evaluate", rows, "--json")
    assert judged.code == 0 and "accuracy" in json.loads(judged.out), judged.err

    composed = tmp_path / "composed"
    done = command("delta", "compose", encoder, one, two, "--output", composed)
    assert done.code == 0, done.err
    stacked = state_after(encoder, one, two, tmp_path, command)
    assert command("delta", "apply", encoder, composed, "--output", tmp_path / "c").code == 0
    at_once = state(tmp_path / "c")
    assert all(torch.equal(at_once[name], stacked[name]) for name in stacked)


def state_after(encoder, one, two, tmp_path, command):
    """The weights with one delta in, and then the other on top of it."""
    labels = {"num_labels": 2, "id2label": {0: "bad", 1: "good"}}
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, **labels)
    sft.apply(model, sft.load_delta(one))
    sft.apply(model, sft.load_delta(two), force=True)
    return model.state_dict()


def test_a_diff_of_two_folders_gives_the_second(command, trained, encoder, tmp_path):
    one, two = trained
    for name, delta in (("a", one), ("b", two)):
        assert command("delta", "apply", encoder, delta, "--output", tmp_path / name).code == 0
    file = tmp_path / "between.safetensors"
    line = ("delta", "diff", tmp_path / "a", tmp_path / "b", "--origin", "--output", file)
    assert command(*line).code == 0
    assert command("delta", "apply", tmp_path / "a", file, "--output", tmp_path / "c").code == 0
    found, wanted = state(tmp_path / "c"), state(tmp_path / "b")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_exported_delta_is_loaded_by_peft(command, trained, encoder, tmp_path):
    peft = pytest.importorskip("peft")
    one, _ = trained
    adapter, tuned = tmp_path / "adapter", tmp_path / "tuned"
    done = command("delta", "export", one, "--format", "lora", "--output", adapter)
    assert done.code == 0, done.err
    assert command("delta", "apply", encoder, one, "--output", tuned).code == 0
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(encoder)
    adapted = peft.PeftModel.from_pretrained(base, adapter).eval()
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        wanted = whole(input_ids=tokens).logits
        torch.testing.assert_close(adapted(input_ids=tokens).logits, wanted)


def test_a_diff_of_two_kinds_of_models_is_told(command, encoder, decoder, tmp_path):
    file = tmp_path / "none.safetensors"
    ended = command("delta", "diff", encoder, decoder, "--output", file)
    assert ended.code == 2 and not file.exists()
    for words in ("holds a BertModel", "a LlamaForCausalLM", "LlamaForCausalLM.from_pretrained("):
        assert words in ended.err
