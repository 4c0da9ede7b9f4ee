"""Quantised models as transformers loads them: trained, saved, merged."""

import copy

import pytest
import torch

import sparse_ft as sft

transformers = pytest.importorskip("transformers")
SHAPE = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    max_position_embeddings=32,
    use_cache=False,
)


def configs():
    """{format: what `from_pretrained` takes}."""
    pytest.importorskip("bitsandbytes")
    quantization = pytest.importorskip("torchao.quantization")
    four, bits = transformers.TorchAoConfig, transformers.BitsAndBytesConfig
    return {
        "nf4": bits(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "int8": bits(load_in_8bit=True),
        "torchao int8": four(quantization.Int8WeightOnlyConfig()),
        "torchao int4": four(quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4)),
        "torchao float8": four(quantization.Float8WeightOnlyConfig()),
    }


FORMATS = ("nf4", "int8", "torchao int8", "torchao int4", "torchao float8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama, saved in full precision."""
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def loaded(folder, form, dtype=torch.float32):
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, quantization_config=configs()[form], dtype=dtype)


def tokens():
    return torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(6))


def train(model, steps=6):
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=tokens()).logits


@pytest.mark.parametrize("form", FORMATS)
def test_loaded_trained_and_merged(form, folder, tmp_path):
    model = loaded(folder, form, torch.bfloat16)
    plan = sft.select(model, density=0.05, score="random")
    assert len(plan) == 7
    assert model.is_quantized
    sft.convert(model, plan, lean=True)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.1
    with pytest.raises(ValueError, match="save_pretrained: .* is quantised.*merge_quantised"):
        model.save_pretrained(tmp_path)
    trained = logits(model)
    sft.merge_quantised(model)
    torch.testing.assert_close(logits(model), trained, rtol=2e-2, atol=2e-2)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(logits(again), logits(model))


def test_patterns_mean_quantised_weights(folder):
    model = loaded(folder, "nf4")
    plan = sft.Plan.match(model, {"*q_proj.weight[:, :4]": "all", "*down_proj.weight[8:]": "all"})
    name = "model.layers.0.self_attn.q_proj.weight"
    assert plan[name] == sft.Columns([0, 1, 2, 3])
    assert sft.matrix_shape(model, name) == (64, 64)
    sft.convert(model, plan)
    assert train(model)[-1] < 4.3


def test_the_trainer_of_transformers_takes_it(folder, tmp_path):
    model = loaded(folder, "nf4")
    settings = transformers.TrainingArguments(
        tmp_path, max_steps=4, save_strategy="no", report_to=[], use_cpu=True, learning_rate=1e-2
    )
    data = [{"input_ids": row, "labels": row} for row in tokens()] * 8
    with pytest.raises(ValueError, match="purely quantized"):
        transformers.Trainer(model, settings, train_dataset=data)
    plan = sft.select(model, density=0.05, score="random")
    sft.convert(model, plan)
    before = copy.deepcopy(model.model.layers[0].self_attn.q_proj.values)
    result = transformers.Trainer(model, settings, train_dataset=data).train()
    assert result.global_step == 4
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.values, before)
    with pytest.warns(UserWarning, match="come back as they were"):
        sft.revert(model)
    assert model.is_quantized


def test_small_checkpoints_go_on(folder, tmp_path):
    from sparse_ft.trainers import SparseCallback

    data = [{"input_ids": row, "labels": row} for row in tokens()] * 8

    def run(model, path, **settings):
        settings = {"report_to": [], "use_cpu": True, "learning_rate": 1e-2, **settings}
        arguments = transformers.TrainingArguments(path, **settings)
        return transformers.Trainer(
            model, arguments, train_dataset=data, callbacks=[SparseCallback()]
        )

    def fresh():
        model = loaded(folder, "nf4")
        sft.convert(model, {"model.layers.0.self_attn.q_proj.weight": sft.Columns([0, 5, 9])})
        return model

    whole = fresh()
    run(whole, tmp_path / "one", max_steps=6, save_strategy="no").train()
    half = fresh()
    steps = dict(save_strategy="steps", save_steps=3)
    first = run(half, tmp_path / "two", max_steps=6, **steps)
    first.train()
    again = fresh()
    run(again, tmp_path / "two", max_steps=6, **steps).train(
        resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-3")
    )
    for model in (half, again):
        assert torch.equal(
            model.model.layers[0].self_attn.q_proj.values,
            whole.model.layers[0].self_attn.q_proj.values,
        )
