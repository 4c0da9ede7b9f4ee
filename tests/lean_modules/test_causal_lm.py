"""lean(model, loss=True): the training loss of a language model from its hidden states."""

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from helpers.architectures import SMALL_LM, TOKENS, build, double

import sparse_ft as sft
from sparse_ft.lean_modules import is_lean

pytestmark = pytest.mark.usefixtures("on_device")

IDS = TOKENS["input_ids"]
LABELS = torch.where(IDS == 4, -100, IDS)


@pytest.fixture
def twins():
    model, _ = build("Llama")
    model = double(model)
    return copy.deepcopy(model), model, sft.lean(model, loss=True)


def test_same_loss_and_gradients(twins):
    plain, lean, report = twins
    assert "" in report.changed
    for more in (
        {},
        {"num_items_in_batch": 5},
        {"num_items_in_batch": torch.tensor(5)},
        {"ignore_index": 3},
    ):
        labels = IDS if "ignore_index" in more else LABELS
        losses = [model(IDS, labels=labels, **more).loss for model in (plain, lean)]
        assert abs(losses[0] - losses[1]) < 1e-5  # transformers takes the loss in fp32
        for model, loss in zip((plain, lean), losses):
            model.zero_grad()
            loss.backward()
        for (name, a), (_, b) in zip(plain.named_parameters(), lean.named_parameters()):
            assert torch.allclose(a.grad, b.grad, atol=1e-5), name


def test_logits_in_evaluation_and_without_labels(twins):
    plain, lean, _ = twins
    assert lean(IDS, labels=LABELS).logits is None
    assert torch.allclose(lean(IDS).logits, plain(IDS).logits, atol=1e-5)
    for model in (plain, lean):
        model.eval()
    out = lean(IDS, labels=LABELS)
    assert torch.allclose(out.logits, plain(IDS).logits, atol=1e-5) and out.loss is not None
    assert isinstance(lean(IDS, labels=LABELS, return_dict=False), tuple)


def test_the_head_with_selected_entries(twins):
    plain, lean, _ = twins
    plan = {
        "lm_head.weight": sft.Columns(torch.tensor([0, 7])),
        "model.layers.0.mlp.up_proj.weight": sft.Rows(torch.tensor([3])),
    }
    grads = []
    for model in (plain, lean):
        sft.convert(model, plan)
        model(IDS, labels=LABELS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for a, b in zip(*grads):
        assert torch.allclose(a, b, atol=1e-6) and b.any()


def test_a_loss_of_the_users_own_is_used(twins):
    _, lean, _ = twins
    lean.loss_function = lambda logits, labels, vocab_size, **_: logits.sum()
    with pytest.warns(UserWarning, match="LlamaForCausalLM: its logits are made whole, for sum"):
        out = lean(IDS, labels=LABELS)
    assert torch.equal(out.loss, out.logits.sum())


def test_off_by_default():
    model, _ = build("Llama")
    sft.lean(model)
    assert model(IDS, labels=LABELS).logits is not None


def with_adapter(model):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False)
    )
    return model.base_model.model


def with_hook(model):
    model.lm_head.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return model


def with_a_forward_of_its_own(model):
    model.lm_head.forward = lambda hidden: hidden @ model.lm_head.weight.T * 2
    return model


@pytest.mark.parametrize("change", [with_adapter, with_hook, with_a_forward_of_its_own])
def test_a_head_that_does_more_is_called(twins, change):
    plain, lean, _ = twins
    plain, lean = (change(model) for model in (plain, lean))
    lean.load_state_dict(plain.state_dict())
    with pytest.warns(UserWarning, match="LlamaForCausalLM.*output head"):
        losses = [model.train()(IDS, labels=LABELS).loss for model in (plain, lean)]
    assert abs(losses[0] - losses[1]) < 1e-5


def test_a_micro_batch_whose_labels_are_all_ignored_spoils_nothing(twins):
    losses = []
    for model in twins[:2]:
        sft.convert(
            model,
            {
                "lm_head.weight": sft.Columns([1, 2, 3]),
                "model.layers.0.mlp.up_proj.weight": sft.Rows([0, 5]),
            },
        )
        optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
        for labels in (IDS, torch.full_like(IDS, -100), IDS):
            optimizer.zero_grad()
            loss = model(IDS, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5, nan_ok=True) and losses[2] < losses[0]


WIDE = {**SMALL_LM, "vocab_size": 1000}
GPT2 = dict(
    n_embd=16, n_layer=1, n_head=2, vocab_size=1000, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
T5 = dict(
    d_model=16,
    d_kv=8,
    d_ff=20,
    num_layers=1,
    num_heads=2,
    vocab_size=1000,
    dropout_rate=0.0,
    decoder_start_token_id=0,
)
BERT = {**WIDE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CAUSAL = transformers.AutoModelForCausalLM
MODELS = {
    "llama": (CAUSAL, WIDE),
    "qwen3": (CAUSAL, WIDE),
    "gemma3_text": (CAUSAL, WIDE),
    "mixtral": (CAUSAL, WIDE),
    "olmo2": (CAUSAL, WIDE),
    "phi3": (CAUSAL, WIDE),
    "glm": (CAUSAL, {**WIDE, "head_dim": 8}),
    "cohere": (CAUSAL, WIDE),
    "granite": (CAUSAL, {**WIDE, "logits_scaling": 3.0}),
    "gpt2": (CAUSAL, GPT2),
    "bert": (transformers.AutoModelForMaskedLM, BERT),
    "t5": (transformers.AutoModelForSeq2SeqLM, T5),
}
BART = dict(
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    vocab_size=1000,
    dropout=0.0,
    decoder_attention_heads=2,
)
WHOLE = {  # what they do with their logits needs them whole
    "gemma2": (CAUSAL, WIDE, "tanh"),
    "bart": (transformers.AutoModelForSeq2SeqLM, {**BART, "encoder_attention_heads": 2}, "add"),
}


def made(name):
    auto, settings, *_ = {**MODELS, **WHOLE}[name]
    torch.manual_seed(0)
    model = auto.from_config(transformers.AutoConfig.for_model(name, **settings)).train()
    model.requires_grad_(False)
    norm = [p for key, p in model.named_parameters() if "norm" in key.lower() or "ln_" in key][0]
    return model, norm.requires_grad_(), {"input_ids": IDS, "labels": LABELS}


@pytest.mark.parametrize("name", MODELS)
def test_every_language_model_of_transformers(name):
    model, norm, batch = made(name)
    sft.lean(model)
    before = sft.memory.ledger(model, **batch).total
    want = model(**batch).loss
    (gradient,) = torch.autograd.grad(want, norm)
    report = sft.lean(model, loss=True)
    assert "" in report.changed and not report.offers
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = model(**batch)
    assert out.logits is None and "logits" not in out
    torch.testing.assert_close(out.loss, want, rtol=1e-5, atol=0)
    assert (torch.autograd.grad(out.loss, norm)[0] - gradient).norm() < 1e-5 * gradient.norm()
    saved = before - sft.memory.ledger(model, **batch).total
    tokens = LABELS.numel()
    assert saved > 4 * tokens * 900  # one softmax, at least, of 4 bytes a token and class
    logits = model(input_ids=IDS, **({"decoder_input_ids": IDS} if name == "t5" else {})).logits
    assert type(logits) is torch.Tensor  # without labels all is as it was


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_does_more_with_its_logits_warns_once(name):
    model, norm, batch = made(name)
    want = model(**batch)
    sft.lean(model, loss=True)
    with pytest.warns(
        UserWarning,
        match=f"{type(model).__name__}: its logits are made whole, for {WHOLE[name][2]}",
    ):
        out = model(**batch)
    torch.testing.assert_close((out.loss, out.logits), (want.loss, want.logits))
    assert type(out.logits) is torch.Tensor
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, norm)[0] for loss in (out.loss, want.loss))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(**batch)


@pytest.mark.parametrize(
    "make", [lambda: torch.nn.Linear(4, 4), lambda: build("ViT")[0], lambda: build("BERT")[0]]
)
def test_a_model_without_such_a_loss_warns_by_name(make):
    model = make()
    with pytest.warns(UserWarning, match=f"no loss of {type(model).__name__} becomes lean"):
        sft.lean(model, loss=True)


def test_a_head_of_another_class_is_named():
    model, _ = build("Llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.warns(
        UserWarning,
        match="LlamaForCausalLM: its output head is a torch.nn.modules.container.Sequential",
    ):
        report = sft.lean(model, loss=True)
    assert "" in report.left and "its output head" in str(report)


def test_under_autocast(twins):
    losses, grads = [], []
    for model in twins[:2]:
        model.float()
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            loss = model(IDS, labels=LABELS).loss
        loss.backward()
        losses.append(loss)
        grads.append(model.model.norm.weight.grad)
    assert losses[0].dtype == losses[1].dtype and abs(losses[0] - losses[1]) < 2e-2
    assert (grads[0] - grads[1]).norm() < 3e-2 * grads[0].norm()


def test_with_gradient_checkpointing(twins):
    grads = []
    for model in twins[:2]:
        model.gradient_checkpointing_enable()
        model(IDS, labels=LABELS).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(twins, make):
    _, lean, _ = twins
    twin = make(lean)
    with torch.no_grad():
        twin.lm_head.weight.mul_(2)
    assert is_lean(twin) and is_lean(twin.lm_head)
    assert twin(IDS, labels=LABELS).logits is None
    assert twin(IDS, labels=LABELS).loss != lean(IDS, labels=LABELS).loss


def test_shifted_labels_and_tuples(twins):
    plain, lean, _ = twins
    shifted = torch.nn.functional.pad(LABELS, (0, 1), value=-100)[..., 1:].contiguous()
    for more in ({"shift_labels": shifted}, {"return_dict": False}):
        want, got = plain(IDS, labels=LABELS, **more), lean(IDS, labels=LABELS, **more)
        assert type(want) is type(got) and abs(want[0] - got[0]) < 1e-5
        assert "return_dict" not in more or torch.allclose(want[1], got[1], atol=1e-5)


def test_a_new_head_is_called_and_named(twins):
    _, lean, _ = twins
    lean.resize_token_embeddings(30)
    with pytest.warns(UserWarning, match="output head"):
        assert lean(IDS, labels=LABELS).loss.isfinite()
    sft.lean(lean, loss=True)
    assert lean(IDS, labels=LABELS).logits is None


def test_below_a_compiled_head_and_whole(twins):
    plain, lean, _ = twins
    want = plain(IDS, labels=LABELS).loss
    lean.model.compile(backend="eager")
    out = lean(IDS, labels=LABELS)
    assert out.logits is None and abs(out.loss - want) < 1e-5
    whole = torch.compile(lean, backend="eager")
    with pytest.warns(UserWarning, match="LlamaForCausalLM: torch.compile takes its forward whole"):
        assert abs(whole(input_ids=IDS, labels=LABELS).loss - want) < 1e-5


def test_revert(twins):
    plain, lean, _ = twins
    sft.revert(lean)
    assert not any(is_lean(module) for module in lean.modules())
    assert torch.equal(lean(IDS, labels=LABELS).logits, plain(IDS, labels=LABELS).logits)
