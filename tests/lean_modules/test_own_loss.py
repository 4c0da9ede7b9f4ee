"""sft.lean(model, loss=a function): a training loss of one's own, without logits."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers.architectures import SMALL_LM, TOKENS, build, double
from helpers.largest import Largest

import sparse_ft as sft
from sparse_ft.anchoring import Anchored
from sparse_ft.lean_modules import causal_lm, is_lean
from sparse_ft.token_losses import chunks

pytestmark = pytest.mark.usefixtures("made_on_device")

IDS = TOKENS["input_ids"]
LABELS = torch.where(IDS == 4, -100, IDS)
PLAN = {"model.layers.0.mlp.up_proj.weight": sft.Rows([0, 3])}
PLAN_WITH_HEAD = {**PLAN, "lm_head.weight": sft.Columns([0, 7])}


def dft(tokens):
    return tokens.cross_entropy(lambda each: each.probability)


def hardest_half(tokens):
    losses = tokens.cross_entropy()
    return losses * (losses >= losses.detach().median())


def dense_losses(model, labels=None):
    """The loss of each token that has a target, of whole logits, and these."""
    labels = LABELS if labels is None else labels
    logits = model(IDS).logits[:, :-1].float().flatten(0, 1)
    target = labels[:, 1:].flatten()
    logits = logits[target != -100]
    return F.cross_entropy(logits, target[target != -100], reduction="none"), logits


def dense_dft(model):
    losses, _ = dense_losses(model)
    return losses * torch.exp(-losses.detach())


def dense_hardest_half(model):
    losses, _ = dense_losses(model)
    return losses * (losses >= losses.detach().median())


@pytest.fixture
def twins():
    model, _ = build("Llama")
    model = double(model).train()
    return [copy.deepcopy(model), model]


def gradients(model, loss):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, trained)


@pytest.mark.parametrize("plan", [PLAN, PLAN_WITH_HEAD], ids=["frozen head", "head trains"])
@pytest.mark.parametrize(
    ("own", "dense"), [(dft, dense_dft), (hardest_half, dense_hardest_half)], ids=["DFT", "half"]
)
def test_is_the_formula_on_whole_logits(twins, own, dense, plan):
    plain, lean = twins
    for model in twins:
        sft.convert(model, plan)
    sft.lean(lean, loss=own)
    out = lean(IDS, labels=LABELS)
    assert out.logits is None
    want = dense(plain)
    torch.testing.assert_close(out.loss.float(), want.mean().float(), rtol=1e-5, atol=0)
    for a, b in zip(gradients(lean, out.loss), gradients(plain, want.mean()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    given = lean(IDS, labels=LABELS, num_items_in_batch=5).loss
    torch.testing.assert_close(given.float(), (want.sum() / 5).float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("plan", [PLAN, PLAN_WITH_HEAD], ids=["frozen head", "head trains"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_anchored_to_the_base_through_its_origin(twins, plan, direction):
    base, model = twins
    base.eval()
    plain = copy.deepcopy(model)
    for each in (plain, model):
        sft.convert(each, plan, origin=True)
    probability = lambda each: each.probability  # noqa: E731
    loss = Anchored(model, 0.3, token_weights=probability, direction=direction)
    sft.lean(model, loss=loss)
    for step in range(2):
        # The first step is at the base itself: its KL is 0, and so is the gradient of that.
        losses, logits = dense_losses(plain)
        log_p = logits.log_softmax(-1)
        log_q = dense_losses(base)[1].log_softmax(-1).detach()
        a, b = (log_q, log_p) if direction == "forward" else (log_p, log_q)
        far = (a.exp() * (a - b)).sum(-1)
        want = (losses * torch.exp(-losses.detach()) + 0.3 * far).mean()
        got = model(IDS, labels=LABELS).loss
        assert model.training and all(each.training for each in model.modules())
        torch.testing.assert_close(got.float(), want.float(), rtol=1e-5, atol=0)
        for x, y in zip(gradients(model, got), gradients(plain, want), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)
        assert (far.max() > 1e-4) == (step == 1)
        for each in (model, plain):
            with torch.no_grad():
                for parameter in each.parameters():
                    if parameter.requires_grad:
                        parameter += 0.2


def test_no_tensor_of_tokens_times_classes_is_made(device):
    settings = {**SMALL_LM, "vocab_size": 3000}
    config = transformers.AutoConfig.for_model("llama", **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    tokens = 32 if device.type == "cpu" else 512  # a GPU's chunks are of 512 tokens at least
    ids = torch.randint(0, 3000, (4, tokens))
    sft.convert(model, PLAN, origin=True)
    probability = lambda each: each.probability  # noqa: E731
    sft.lean(model, loss=Anchored(model, token_weights=probability))
    weights = [p for p in model.parameters() if p.numel() > 10000]
    with pytest.MonkeyPatch.context() as patch, Largest(*weights) as largest:
        patch.setattr(chunks, "CHUNK_BYTES", 4 * 3000 * 16)
        model(ids, labels=ids).loss.backward()
    assert 16 * 3000 <= largest.entries < 4 * (tokens - 1) * 3000 / 2


def test_evaluation_and_what_takes_it_away(twins):
    plain, lean = twins
    sft.lean(lean, loss=dft)
    assert lean(IDS).logits is not None
    lean.eval()
    out = lean(IDS, labels=LABELS)
    assert out.logits is not None
    torch.testing.assert_close(out.loss, plain.eval()(IDS, labels=LABELS).loss)
    plain.train(), lean.train()
    twin = copy.deepcopy(lean)
    assert twin(IDS, labels=LABELS).loss == lean(IDS, labels=LABELS).loss
    sft.lean(lean)  # leaves it
    assert twin(IDS, labels=LABELS).loss == lean(IDS, labels=LABELS).loss
    sft.lean(lean, loss=True)
    want = plain(IDS, labels=LABELS).loss
    torch.testing.assert_close(lean(IDS, labels=LABELS).loss, want)
    sft.lean(lean, loss=dft)
    assert lean(IDS, labels=LABELS).loss < 0.9 * want
    sft.revert(lean)
    assert not any(is_lean(module) for module in lean.modules())
    torch.testing.assert_close(lean(IDS, labels=LABELS).loss, want)


def test_it_is_never_left_out_silently(twins, monkeypatch):
    _, model = twins
    sft.lean(model, loss=dft)
    with pytest.raises(RuntimeError, match="LlamaForCausalLM cannot train.*return_dict=False"):
        model(IDS, labels=LABELS, return_dict=False)
    with monkeypatch.context() as patch:
        patch.setattr(causal_lm, "is_compiling", lambda: True)
        with pytest.raises(RuntimeError, match="torch.compile takes its forward whole"):
            model(IDS, labels=LABELS)
    handle = model.lm_head.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="its output head has hooks"):
        model(IDS, labels=LABELS)
    handle.remove()
    model.loss_function = lambda logits, labels, vocab_size, **_: logits.sum()
    with pytest.raises(RuntimeError, match="its logits are made whole, for sum"):
        model(IDS, labels=LABELS)


def test_a_model_lives_no_longer_than_its_last_user(twins):
    _, model = twins
    sft.convert(model, PLAN, origin=True)
    sft.lean(model, loss=Anchored(model))
    model(IDS, labels=LABELS).loss.backward()
    gone = weakref.ref(model.lm_head)
    del model, twins[1:]
    gc.collect()
    assert gone() is None


def test_a_model_that_needs_its_logits_raises():
    config = transformers.AutoConfig.for_model("gemma2", **SMALL_LM)
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    sft.convert(model, PLAN, origin=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sft.lean(model, loss=dft)
        with pytest.raises(RuntimeError, match="Gemma2ForCausalLM cannot.*for tanh"):
            model(IDS, labels=LABELS)
        sft.lean(model, loss=Anchored(model))
        with pytest.raises(RuntimeError, match="Gemma2ForCausalLM cannot"):
            model(IDS, labels=LABELS)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("loss", "error", "says"),
    [(dft, ValueError, "no loss of Linear becomes lean"), ("dft", TypeError, "loss.*'dft'")],
)
def test_refusals(loss, error, says):
    model = torch.nn.Linear(4, 4)
    with pytest.raises(error, match=says):
        sft.lean(model, loss=loss)
    assert not is_lean(model)


def test_one_number_a_token_is_asked_for(twins):
    _, model = twins
    sft.lean(model, loss=lambda tokens: tokens.cross_entropy().mean())
    with pytest.raises(ValueError, match="loss: it must return one number a token"):
        model(IDS, labels=LABELS)
