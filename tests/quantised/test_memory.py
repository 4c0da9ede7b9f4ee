"""What a quantised base holds: beside its codes the values, and one dequantised layer at a time."""

import copy

import pytest
import torch
from helpers.allocations import allocated_by
from helpers.quantised import FORMATS, network, plan_of, quantise
from torch import nn

import sparse_ft as sft
from sparse_ft.memory.storages import model_storages

MIB = 1 << 20
LAYERS, TOKENS = 8, 128
LLAMA = dict(
    hidden_size=1024,
    intermediate_size=2816,
    num_attention_heads=16,
    num_key_value_heads=8,
    vocab_size=64,
    max_position_embeddings=TOKENS,
    tie_word_embeddings=True,
    use_cache=False,
)


def held_by(model):
    """Bytes of all that a model holds."""
    return sum(storage.nbytes() for storage in model_storages(model).values())


def llama():
    """Eight layers of h = 1024 in bf16 and nf4, all alike."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(num_hidden_layers=1, **LLAMA)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    quantise(model.model, "nf4", compress_statistics=False)
    first = model.model.layers[0]
    model.model.layers = nn.ModuleList(copied(first) for _ in range(LAYERS))
    model.config.num_hidden_layers = LAYERS
    return model.train()


def copied(part):
    """A deep copy, in which bitsandbytes' layers hold their scales once, as those of a model do
    that was loaded.
    """
    part = copy.deepcopy(part)
    for module in part.modules():
        if sft.quantised.quantiser_of(module) is not None:
            module.quant_state = module.weight.quant_state
    return part


def one_percent(model):
    """Columns of every quantised layer."""
    plan = {}
    for name, module in model.named_modules():
        if sft.quantised.quantiser_of(module) is not None:
            count = round(0.01 * module.in_features)
            plan[f"{name}.weight"] = sft.Columns(range(0, 50 * count, 50))
    return plan


def test_at_one_percent_of_columns_less_is_held_than_by_qlora():
    peft = pytest.importorskip("peft")
    model, tokens = llama(), torch.randint(0, 64, (1, TOKENS))
    config = peft.LoraConfig(r=8, target_modules="all-linear")
    qlora = peft.get_peft_model(copied(model), config)
    held = held_by(qlora)
    kept = sft.memory.ledger(qlora, input_ids=tokens, labels=tokens).total
    del qlora
    sft.convert(model, one_percent(model))
    ours = sft.memory.ledger(model, input_ids=tokens, labels=tokens).total
    assert held_by(model) <= min(held, 57.2 * MIB)
    assert ours <= min(kept / 2, 33.2 * MIB)
    sft.lean(model)
    lean = sft.memory.ledger(model, input_ids=tokens, labels=tokens).total
    assert lean <= kept / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMATS)
def test_one_dequantised_layer_at_a_time(form, dtype, tmp_path):
    outs, ins, tokens = 1536, 768, 32
    model = quantise(nn.Sequential(nn.Linear(ins, outs, bias=False)).to(dtype), form)
    sft.convert(model, {"0.weight": sft.Columns(range(0, ins, 100))})
    inputs = torch.randn(tokens, ins, dtype=dtype, requires_grad=True)
    outputs = []
    size = inputs.element_size()
    forward = allocated_by(lambda: outputs.append(model(inputs)), tmp_path)
    gradient = torch.ones_like(outputs[0])
    backward = allocated_by(lambda: outputs[0].backward(gradient), tmp_path)
    dense = outs * ins * size
    # scales of blocks, or the strip that is dequantised in fp32
    beside = outs * ins * 4 // 64 + 4 * MIB // 2
    if form == "nf4":
        beside = outs * ins * 4 // 60
    assert dense <= forward.most <= dense + tokens * outs * size + beside
    assert dense <= backward.most <= dense + 4 * tokens * ins * 4 + beside


@pytest.mark.parametrize("form", FORMATS)
def test_an_estimate_is_what_is_there(form):
    model = quantise(network(), form)
    inputs = torch.randn(8, 64)
    for kind in ("columns", "entries"):
        plan = plan_of(model, kind)
        estimate = sft.estimate(model, plan, inputs={"input": inputs})
        converted = copy.deepcopy(model)
        sft.convert(converted, plan)
        ledger = sft.memory.ledger(converted, inputs)
        assert estimate.weights == pytest.approx(held_by(model), abs=64)
        assert estimate.values == sum(
            4 * what.nnz(matrix(model, name)) for name, what in plan.items()
        )
        assert estimate.activations == ledger.total
        assert estimate.peak > estimate.weights + 4 * 64 * 128


def matrix(model, name):
    return sft.matrix_shape(model, name)


def test_an_estimate_of_lora_over_four_bits():
    pytest.importorskip("peft")
    model = quantise(network(), "nf4")
    inputs = {"input": torch.randn(8, 64)}
    lora = sft.estimate(model, {"lora": 4}, inputs=inputs)
    ours = sft.estimate(model, {"structure": "columns", "density": 0.05}, inputs=inputs)
    assert ours.activations < lora.activations
    assert lora.weights == ours.weights


def test_lean_keeps_inputs_that_can_be_made_again():
    def model_of(lean):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 64), nn.RMSNorm(64), nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 64)
        )
        quantise(model, "nf4")
        sft.convert(model, plan_of(model, "rows"), lean=lean)
        return model

    inputs = torch.randn(32, 64)
    plain, lean = model_of(False), model_of(True)
    kept = [sft.memory.ledger(model, inputs).total for model in (plain, lean)]
    assert kept[1] < 0.8 * kept[0]
    for model in (plain, lean):
        model(inputs).square().sum().backward()
    for one, other in zip(plain.parameters(), lean.parameters()):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_inputs_in_eight_bits_are_refused_by_name():
    model = quantise(network(), "nf4")
    sft.convert(model, plan_of(model, "rows"))
    report = sft.lean(model, eight_bit_inputs=True)
    assert "a quantised layer keeps its input as it is" in str(report)
