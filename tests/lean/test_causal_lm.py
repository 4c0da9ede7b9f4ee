"""lean(model, loss=True): the training loss of a causal language model from its hidden states."""

import copy

import pytest
import torch
from helpers.architectures import TOKENS, build, double

import sparse_ft as sft

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
    for more in ({}, {"num_items_in_batch": 5}, {"num_items_in_batch": torch.tensor(5)}, {"ignore_index": 3}):
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
    out = lean(IDS, labels=LABELS)
    assert torch.equal(out.loss, out.logits.sum())


def test_off_by_default():
    model, _ = build("Llama")
    sft.lean(model)
    assert model(IDS, labels=LABELS).logits is not None


def with_adapter(model):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
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
    losses = [model.train()(IDS, labels=LABELS).loss for model in (plain, lean)]
    assert abs(losses[0] - losses[1]) < 1e-5


def test_a_micro_batch_whose_labels_are_all_ignored_spoils_nothing(twins):
    losses = []
    for model in twins[:2]:
        sft.convert(model, {"lm_head.weight": sft.Columns([1, 2, 3]), "model.layers.0.mlp.up_proj.weight": sft.Rows([0, 5])})
        optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
        for labels in (IDS, torch.full_like(IDS, -100), IDS):
            optimizer.zero_grad()
            loss = model(IDS, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-5, nan_ok=True) and losses[2] < losses[0]
