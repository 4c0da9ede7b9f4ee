"""Padded batches: same results as transformers' own attention, key and value heads unrepeated, one
mask a model.
"""

import copy
import gc
import importlib
import subprocess
import sys

import pytest
import torch
import transformers

import sparse_ft as sft
from sparse_ft.known import Known
from sparse_ft.lean_modules import attention

pytestmark = pytest.mark.usefixtures("made_on_device")

LAYERS, BATCH, LENGTH, HIDDEN = 3, 2, 64, 64
ON_HOST = pytest.mark.usefixtures("on_host")


@pytest.fixture
def on_host(device):
    if device.type != "cpu":
        pytest.skip("on a GPU this is the attention of transformers")


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
    handle = model.model.layers[0].register_full_backward_hook(
        lambda _, grad_in, grad_out: grads.append(grad_out[0])
    )
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


@ON_HOST
def test_one_mask_for_all_layers_and_no_repeated_heads(model):
    inputs = batch()
    sft.lean(model)
    attention = [
        row for row in sft.memory.ledger(model, **inputs).rows if row.module.endswith("self_attn")
    ]
    state = 4 * BATCH * LENGTH
    qkv_output_lse = state * HIDDEN * (1 + 2 / 8 * 2 + 1) + state * 8
    mask = 4 * BATCH * LENGTH * LENGTH
    rotary = 2 * 4 * LENGTH * HIDDEN // 8
    assert sum(row.bytes for row in attention) <= LAYERS * qkv_output_lse + mask + rotary


def padded_bart(layers):
    """(an encoder-decoder with two heads, all frozen but its embedding; a batch with padding on
    both sides)
    """
    torch.manual_seed(0)
    config = transformers.BartConfig(
        d_model=16,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        vocab_size=50,
        dropout=0.0,
    )
    bart = transformers.BartForConditionalGeneration(config).train().requires_grad_(False)
    bart.model.shared.weight.requires_grad_(True)
    inputs = batch()
    return bart, {**inputs, **{f"decoder_{name}": value for name, value in inputs.items()}}


@pytest.fixture
def made_masks(monkeypatch):
    """The additive masks that layers were given."""
    given, additive = [], attention.additive

    def spy(mask, dtype):
        given.append(additive(mask, dtype))
        return given[-1]

    monkeypatch.setattr(attention, "additive", spy)
    return given


@ON_HOST
def test_an_encoder_and_a_decoder_make_no_mask_twice(made_masks):
    bart, inputs = padded_bart(layers=4)
    assert sft.lean(bart).attention
    out = bart(**inputs)
    # Four layers of an encoder, and of a decoder with two attentions each.
    assert len(made_masks) == 12
    assert len({mask.data_ptr() for mask in made_masks}) == 3
    assert out.logits.isfinite().all()


@ON_HOST
def test_two_models_in_turn_make_no_mask_twice(model, made_masks):
    other = copy.deepcopy(model)
    inputs = batch()
    for twin in (model, other):
        sft.lean(twin)
    layers = [twin.model.layers[0].self_attn for twin in (model, other)]
    state = torch.randn(BATCH, 8, LENGTH, 8, requires_grad=True)
    masks = [torch.ones(BATCH, 1, LENGTH, LENGTH, dtype=torch.bool).tril(k) for k in (0, 1)]
    outputs = [
        attention.attention(layers[k], state, state, state, masks[k])[0] for k in (0, 1) * LAYERS
    ]
    assert len(made_masks) == 2 * LAYERS and len({mask.data_ptr() for mask in made_masks}) == 2
    assert len(outputs) == 2 * LAYERS and model(**inputs).logits.isfinite().all()


def test_any_number_of_masks_is_made_once():
    masks = [torch.ones(1, 1, 4, 4, dtype=torch.bool).tril() for _ in range(20)]
    made = [[attention.additive(mask, torch.float32) for mask in masks] for _ in range(2)]
    assert all(first is again for first, again in zip(*made))
    assert len({mask.data_ptr() for mask in made[0]}) == 20
    assert attention.additive(masks[0], torch.bfloat16).dtype == torch.bfloat16
    masks[0].logical_not_()
    assert torch.equal(attention.additive(masks[0], torch.float32) == 0, masks[0])


def test_masks_are_not_kept_alive(model, monkeypatch):
    monkeypatch.setattr(attention, "_masks", Known())  # of other tests' graphs none
    sft.lean(model)
    model(**batch()).logits.sum().backward()
    gc.collect()
    assert not attention._masks.alive()


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


def test_in_inference_mode(model):
    inputs, lean = batch(), copy.deepcopy(model)
    sft.lean(lean)
    with torch.inference_mode():
        assert torch.allclose(lean(**inputs).logits, model(**inputs).logits, atol=1e-5)


@ON_HOST
def test_what_sdpa_refuses_is_refused(model):
    state = torch.randn(1, 8, 4, 8)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="softcap"):
        attention.attention(model.model.layers[0].self_attn, state, state, state, mask, softcap=2.0)


def test_parts_keep_the_attention_they_have():
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=32,
    )
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text)
    )
    model.set_attn_implementation({"vision_config": "eager"})
    for change, name in ((sft.lean, attention.NAME), (sft.revert, "sdpa")):
        change(model)
        configs = model.config, model.config.text_config, model.config.vision_config
        assert [c._attn_implementation for c in configs] == [name, name, "eager"]


def test_a_model_that_asks_for_the_name_keeps_it():
    """Falcon calls torch's attention itself where the name is "sdpa".

    DeepSeek V3.2 would drop its sparse mask.
    """
    config = transformers.FalconConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    model = transformers.FalconModel(config)
    assert not sft.lean(model).attention
    assert model.config._attn_implementation == "sdpa"
    deepseek = "transformers.models.deepseek_v32.modeling_deepseek_v32"
    assert attention._asks_for_its_name(deepseek) is False  # not imported
    importlib.import_module(deepseek)
    attention._asks_for_its_name.cache_clear()
    assert attention._asks_for_its_name(deepseek)


def test_unpickled_in_another_process(model, tmp_path):
    model.disable_input_require_grads()  # its hook cannot be pickled
    sft.lean(model)
    torch.save(model.cpu(), tmp_path / "model.pt")
    code = "import sys, torch; torch.load(sys.argv[1], weights_only=False)(torch.arange(4)[None])"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.pt"], check=True, capture_output=True
    )


def test_models_that_share_a_config_share_no_switch(model):
    other = transformers.LlamaForCausalLM(model.config)
    config = model.config
    assert other.config is config
    sft.lean(model)
    assert (
        model.config._attn_implementation == attention.NAME
        and other.config._attn_implementation == "sdpa"
    )
    assert model.model.layers[0].self_attn.config is model.model.config is model.config
    assert other.model.layers[0].self_attn.config is config
    twin = copy.deepcopy(model)
    sft.revert(model)
    assert all(m.config is config for m in model.modules() if hasattr(m, "config"))
    assert (
        config._attn_implementation == "sdpa" and twin.config._attn_implementation == attention.NAME
    )
    sft.revert(twin)
    assert (
        twin.config._attn_implementation == "sdpa"
        and twin.model.layers[0].self_attn.config is twin.config
    )


def test_what_was_set_in_the_config_meanwhile_stays(model):
    config = model.config
    sft.lean(model)
    model.config.use_cache = True
    sft.revert(model)
    assert (
        model.config.use_cache
        and not config.use_cache
        and model.config._attn_implementation == "sdpa"
    )
