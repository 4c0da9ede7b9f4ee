"""Padded batches: same results as transformers' own attention, key and value heads unrepeated, one mask a model."""

import copy

import pytest
import torch
import transformers

import sparse_ft as sft

LAYERS, BATCH, LENGTH, HIDDEN = 3, 2, 64, 64


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=50,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).train().requires_grad_(False)
    model.enable_input_require_grads()
    return model


def batch():
    ids = torch.randint(0, 50, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, LENGTH // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def run(model, inputs):
    grads = []
    handle = model.model.layers[0].register_full_backward_hook(lambda _, grad_in, grad_out: grads.append(grad_out[0]))
    out = model(**inputs).logits * inputs["attention_mask"][..., None]
    out.square().sum().backward()
    handle.remove()
    return out.detach(), grads[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_results_with_padding(model, dtype):
    model, inputs = model.to(dtype), batch()
    lean = copy.deepcopy(model)
    assert sft.lean(lean).attention
    for a, b in zip(run(lean, inputs), run(model, inputs)):
        assert (a - b).abs().max() <= 40 * torch.finfo(dtype).eps * b.abs().max()


def test_one_mask_for_all_layers_and_no_repeated_heads(model):
    inputs = batch()
    sft.lean(model)
    attention = [row for row in sft.memory.ledger(model, **inputs).rows if row.module.endswith("self_attn")]
    state = 4 * BATCH * LENGTH
    qkv_output_lse = state * HIDDEN * (1 + 2 / 8 * 2 + 1) + state * 8
    mask = 4 * BATCH * LENGTH * LENGTH
    rotary = 2 * 4 * LENGTH * HIDDEN // 8
    assert sum(row.bytes for row in attention) <= LAYERS * qkv_output_lse + mask + rotary


def test_another_mask_is_another_mask(model):
    first, second = batch(), batch()
    second["attention_mask"] = first["attention_mask"].flip(0)
    lean = copy.deepcopy(model)
    sft.lean(lean)
    for inputs in (first, second, first):
        assert torch.allclose(run(lean, inputs)[0], run(model, inputs)[0], atol=1e-5)


def test_revert_gives_the_attention_back(model):
    sft.lean(model)
    assert model.config._attn_implementation == "sparse_ft_sdpa"
    sft.revert(model)
    assert model.config._attn_implementation == "sdpa"
