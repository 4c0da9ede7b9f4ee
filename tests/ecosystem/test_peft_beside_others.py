"""Selective adapters beside everything else: the Trainer's resuming, torch.compile, DDP, pickles,
lean models, Ctrl-C.
"""

import functools
import io
import itertools

import pytest
import torch
from helpers import llama
from helpers.interrupting import interrupted

import sparse_ft as sft

peft = pytest.importorskip("peft")

from helpers.adapters import (  # noqa: E402
    adapted,
    assert_is_base,
    logits_of,
    train,
    two_adapters,
    values_of,
)  # fmt: skip
from transformers import Trainer, TrainingArguments  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, about themselves
STEPS, SAVED = 4, 2


def test_the_trainer_resumes_an_adapter_bit_for_bit(tmp_path):
    rows = [{"input_ids": walk, "labels": walk} for tokens in llama.batches(6) for walk in tokens]

    def run(folder, resume=None, **more):
        model = adapted("entries", torch.bfloat16)
        arguments = TrainingArguments(
            str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **more,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = run(tmp_path / "run", save_strategy="steps", save_steps=SAVED)
    checkpoint = str(tmp_path / "run" / f"checkpoint-{SAVED}")
    again = run(tmp_path / "again", checkpoint, save_strategy="no")
    want, got = values_of(whole), values_of(again)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert torch.equal(logits_of(again), logits_of(whole))


def test_a_compiled_model_trains_alike_and_follows_the_adapters():
    model = adapted()
    compiled = torch.compile(model, backend="aot_eager")
    assert train(model, STEPS, forward=compiled) == train(adapted(), STEPS)
    with model.disable_adapter():
        assert torch.equal(logits_of(compiled), logits_of(llama.tiny_llama()))
    assert torch.equal(logits_of(compiled), logits_of(model))


def test_ddp_trains_alike(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = adapted("entries")
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        assert train(model, STEPS, forward=wrapped) == train(adapted("entries"), STEPS)
        assert not list(model.buffers()) or all(
            "selective" not in name for name, _ in model.named_buffers()
        )
        del wrapped  # what outlives its process group may wait for ever when it is freed
    finally:
        torch.distributed.destroy_process_group()


def test_a_pickle_trains_on_and_gives_the_base_back():
    model, file = two_adapters(), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert torch.equal(logits_of(other), logits_of(model))
    assert train(other, STEPS) == train(model, STEPS)
    with other.disable_adapter():
        assert_is_base(other)


def test_a_lean_model_trains_alike_up_to_rounding():
    model = adapted()
    sft.lean(model)
    assert train(model, STEPS) == pytest.approx(train(adapted(), STEPS), rel=1e-5)


def test_an_adapter_that_is_loaded_beside_leaves_the_active_one(tmp_path):
    two_adapters().save_pretrained(tmp_path)
    model = adapted("blocks")
    before = logits_of(model)
    model.load_adapter(tmp_path / "other", "second")
    assert torch.equal(logits_of(model), before) and model.active_adapters == ["default"]


@pytest.mark.parametrize("call", ["set_adapter", "disable", "enable", "delete"])
def test_ctrl_c_at_any_line_leaves_the_base_below(call):
    """Whatever was half done: the next call ends in a state that was asked for."""
    wanted = two_adapters()
    wanted.set_adapter("default")
    want = logits_of(wanted)
    calls = {
        "set_adapter": lambda model: model.set_adapter("default"),
        "disable": lambda model: model.base_model.disable_adapter_layers(),
        "enable": lambda model: model.base_model.enable_adapter_layers(),
        "delete": lambda model: model.delete_adapter("other"),
    }
    trained = two_adapters()
    file = io.BytesIO()
    torch.save(trained, file)
    lines = 0
    for line in itertools.count(1, 5):
        file.seek(0)
        model = torch.load(file, weights_only=False)
        if call == "enable":
            model.base_model.disable_adapter_layers()
        act = functools.partial(calls[call], model)
        if not interrupted(act, line, lambda file: "sparse_ft/peft" in file):
            break
        lines += 1
        model.base_model.enable_adapter_layers()
        model.set_adapter("default")
        assert torch.equal(logits_of(model), want), line
        with model.disable_adapter():
            assert_is_base(model)
    assert lines > 3
