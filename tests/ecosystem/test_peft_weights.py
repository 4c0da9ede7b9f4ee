"""What an adapter leaves in the weight: merging, copies, casts, backwards under another adapter."""

import copy

import pytest
import torch
from helpers import llama

import sparse_ft as sft

peft = pytest.importorskip("peft")

from helpers.adapters import (  # noqa: E402
    adapted,
    assert_is_base,
    logits_of,
    optimizer_of,
    train,
    two_adapters,
    values_of,
)  # fmt: skip

from sparse_ft.peft import SelectiveLayer  # noqa: E402

STEPS = 4
# transformers' and PEFT's own, about each other
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_merge_and_unload_and_unload():
    model, merged = adapted(), adapted()
    train(model, STEPS), train(merged, STEPS)
    want = logits_of(model)
    plain = merged.merge_and_unload()
    assert torch.equal(logits_of(plain), want)
    assert not any(isinstance(module, SelectiveLayer) for module in plain.modules())
    assert plain.state_dict().keys() == llama.tiny_llama().state_dict().keys()
    assert_is_base(model.unload())


def test_merge_adapter_and_unmerge_adapter():
    model = two_adapters()
    model.set_adapter("default")
    want = logits_of(model)
    model.merge_adapter(["default"], safe_merge=True)
    assert torch.equal(logits_of(model), want)
    model.unmerge_adapter()
    assert torch.equal(logits_of(model), want)
    with model.disable_adapter():
        assert_is_base(model)


def test_merging_an_adapter_that_is_not_active():
    model = two_adapters()
    want = logits_of(model)
    model.set_adapter("default")
    assert torch.equal(logits_of(model.merge_and_unload(adapter_names=["other"])), want)


def test_a_state_dict_of_the_whole_restores_values_and_base():
    model, other = two_adapters(), two_adapters()
    train(model, STEPS)
    state = copy.deepcopy(model.state_dict())
    for each in ("default", "other"):
        other.set_adapter(each)
        other.load_state_dict(state)
        with other.disable_adapter():
            assert_is_base(other)
    assert torch.equal(logits_of(other), logits_of(model))
    with other.disable_adapter():
        other.load_state_dict(state)
        assert_is_base(other)
    assert torch.equal(logits_of(other), logits_of(model))


def test_a_copy_has_adapters_of_its_own():
    model = adapted()
    train(model, STEPS)
    twin = copy.deepcopy(model)
    want = logits_of(model)
    train(twin, STEPS)
    assert torch.equal(logits_of(model), want) and not torch.equal(logits_of(twin), want)
    with twin.disable_adapter():
        assert_is_base(twin)


def test_a_cast_keeps_base_and_masters():
    model = adapted()
    train(model, STEPS)
    values = values_of(model)
    model.to(torch.bfloat16)
    assert all(torch.equal(v, values[n]) for n, v in values_of(model).items())
    with model.disable_adapter():
        assert_is_base(model, torch.bfloat16)


def test_between_forward_and_backward_others_may_run():
    """As TRL's trainers do: the reference's forward comes between the policy's and its backward."""
    model, plain = two_adapters(), two_adapters()
    tokens = next(llama.batches(1))
    for each in (model, plain):
        each.zero_grad()
    llama.loss_of(plain, tokens).backward()
    loss = llama.loss_of(model, tokens)
    with torch.no_grad(), model.disable_adapter():
        llama.loss_of(model, tokens)
    model.set_adapter("default")
    with torch.no_grad():
        llama.loss_of(model, tokens)
    model.set_adapter("other")
    loss.backward()
    for name, p in plain.named_parameters():
        grad = model.get_parameter(name).grad
        assert (p.grad is None and grad is None) or torch.equal(p.grad, grad), name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("other", ["default", None])
def test_a_backward_under_another_adapter_is_refused(other, checkpointing):
    model = two_adapters()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        model.train()
    loss = llama.loss_of(model, next(llama.batches(1)))
    then = "the adapter 'other'"
    if other is None:
        now = r"the base \(no adapter\)"
        with model.disable_adapter(), pytest.raises(RuntimeError, match=f"{now}.*with {then}"):
            loss.backward()
    else:
        model.set_adapter(other)
        now = "the adapter 'default'"
        with pytest.raises(RuntimeError, match=f"{now}.*with {then}"):
            loss.backward()


def test_a_backward_after_a_step_under_another_adapter_is_refused():
    """The entries changed while they were hidden, so what the forward saved is gone."""
    model = adapted()
    optimizer = optimizer_of(model, sft.SelectiveAdamW)
    tokens = next(llama.batches(1))
    llama.loss_of(model, tokens).backward()
    pending = llama.loss_of(model, tokens)
    with model.disable_adapter():
        optimizer.step()
        assert_is_base(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        pending.backward()
