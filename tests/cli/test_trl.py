"""`trainer: trl`: TRL's SFTTrainer over prompts with completions, and over chats."""

import json
import sys

import pytest
import torch
import transformers
from helpers import trl_runs

import sparse_ft as sft

trl_runs.make_importable("trl", "datasets")

PAIRS = [("it was", "a good film"), ("the book was", "dull"), ("and the film", "very warm")] * 6
TEMPLATE = (
    "{% for message in messages %}{{ message.role }} : {{ message.content }} [EOS] {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture
def pairs(tmp_path):
    """JSON lines as TRL's data sets have them."""
    file = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": ask, "completion": say}) for ask, say in PAIRS]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def chats(tmp_path):
    file = tmp_path / "chats.jsonl"
    lines = []
    for ask, say in PAIRS:
        asked, told = {"role": "user", "content": ask}, {"role": "assistant", "content": say}
        lines.append(json.dumps({"chat": [asked, told, asked, told]}))
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def asked(config, decoder, pairs):
    """A command line over TRL's trainer."""
    line = ("finetune", config, "--model", decoder, "--task", "causal-lm", "--train", pairs)
    columns = ("--text", "completion", "--set", "data.prompt=prompt")
    return (*line, *columns, "--set", "trainer=trl", "--lr", 3e-2, "--density", 0.5)


def tensors(run):
    delta = sft.load_delta(run)
    return {name: delta[name].values for name in delta}


def assert_same(one, other):
    a, b = tensors(one), tensors(other)
    assert list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_prompts_and_completions_train_to_a_delta_and_go_on_bit_for_bit(
    command, asked, decoder, interrupted, tmp_path
):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert command(*asked).code == 130
    assert not (run / "delta.safetensors").exists()
    interrupted()
    done = command("finetune", run, "--resume")
    assert done.code == 0 and "goes on from" in done.out, done.err
    done = command(*asked, "--output", whole, "--json")
    assert done.code == 0, done.err
    assert_same(run, whole)

    reported = json.loads(done.out)["evaluated"]
    line = ("delta", "apply", decoder, run, "--evaluate", run / "validation.jsonl", "--json")
    found = json.loads(command(*line).out)
    assert found["training_reported"] == reported
    assert {name: found[name] for name in reported} == reported

    # The same rows and loss as transformers' own Trainer: what is learnt is the completion alone.
    other = tmp_path / "other"
    told = command(*asked, "--set", "trainer=transformers", "--output", other, "--json")
    assert json.loads(told.out)["evaluated"]["loss"] == pytest.approx(reported["loss"], rel=1e-3)
    for name, values in tensors(other).items():
        torch.testing.assert_close(tensors(whole)[name], values, rtol=0.05, atol=2e-3)


def test_a_selected_head_trains_though_trl_reads_its_weight(command, asked, tmp_path):
    """And lean goes with it, and packing; afterwards the model is as transformers made it."""
    head = ("--set", "settings={targets: '*lm_head.weight', density: 0.5, structure: rows}")
    head += ("--density", 0.5, "--structure", "rows", "--lean", "--lr", 1e-2)
    done = command(*asked, *head, "--set", "training.arguments.packing=true")
    assert done.code == 0, done.err
    delta = sft.load_delta(tmp_path / "run")
    assert list(delta) == ["lm_head.weight"]
    base = transformers.AutoModelForCausalLM.from_pretrained(asked[3])
    before = delta.plan["lm_head.weight"].gather(base.lm_head.weight)
    assert (delta["lm_head.weight"].values - before).abs().mean() > 5e-3


def test_chats_train_on_what_the_assistant_says(command, asked, decoder, chats, tmp_path):
    model = tmp_path / "chat-model"
    transformers.AutoModelForCausalLM.from_pretrained(decoder).save_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder)
    line = (*asked, "--model", model, "--train", chats, "--steps", 20, "--json")
    line += ("--set", "also=[lm_head.weight]")
    line += ("--set", "data.prompt=null", "--set", "data.messages=chat")
    tokenizer.save_pretrained(model)
    refused = command(*line)
    assert refused.code == 2 and "data.messages: the tokenizer has no chat template" in refused.err

    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    done = command(*line, "--set", "data.max_length=24")
    assert done.code == 0, done.err
    told = json.loads(done.out)["evaluated"]
    rows = tmp_path / "run" / "validation.jsonl"
    assert json.loads(rows.read_text().splitlines()[0])["chat"][1]["role"] == "assistant"
    applied = command("delta", "apply", model, tmp_path / "run", "--evaluate", rows, "--json")
    assert json.loads(applied.out)["training_reported"] == told
    assert told["perplexity"] < 12  # of 23 words


def test_each_turn_of_the_assistant_is_learnt_and_nothing_else(decoder):
    from sparse_ft.cli.chats import IGNORED, encode_chat
    from sparse_ft.cli.misuse import Misuse

    tokenizer = transformers.AutoTokenizer.from_pretrained(decoder)
    tokenizer.chat_template = TEMPLATE
    user, assistant = {"role": "user", "content": "film"}, {"role": "assistant"}
    chat = [user, {**assistant, "content": "good"}, user, {**assistant, "content": "very dull"}]
    tokens, labels = encode_chat(tokenizer, chat, "data.train")
    learnt = [token for token in labels if token != IGNORED]
    assert tokenizer.decode(learnt).split() == ["good", "[EOS]", "very", "dull", "[EOS]"]
    assert all(label in (IGNORED, token) for token, label in zip(tokens, labels))
    tokenizer.chat_template = "{{ messages | length }} good {{ messages[-1].content }}"
    with pytest.raises(Misuse, match="data.train: .*otherwise than within the whole chat"):
        encode_chat(tokenizer, [*chat, user], "data.train")


def test_what_trl_does_not_do_is_told(command, asked, config, rows, monkeypatch):
    classes = command("finetune", config, "--set", "trainer=trl")
    assert classes.code == 2 and "trainer: 'trl'" in classes.err and "causal-lm" in classes.err
    ours = command(*asked, "--set", "training.arguments.max_length=9")
    assert ours.code == 2 and "say `data.max_length` instead" in ours.err
    unknown = command(*asked, "--set", "training.arguments.packin=true")
    assert unknown.code == 2 and "did you mean 'packing'" in unknown.err
    table = command(
        *asked, "--train", rows, "--set", "data.prompt=null", "--set", "data.messages=text"
    )
    assert table.code == 2 and "data.messages" in table.err and ".jsonl" in table.err
    monkeypatch.setitem(sys.modules, "trl", None)
    absent = command(*asked)
    assert absent.code == 2 and "pip install sparse_ft[trl]" in absent.err
    assert "trainer: 'trl'" in absent.err
