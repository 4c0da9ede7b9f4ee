"""TRL's trainers with peft_config=: the same run as sft.convert's, and no second model.

The reference of DPO and GRPO is the policy itself with the adapter disabled. A run with a second
model beside a converted one has the same losses and weights, bit for bit.
"""

import pytest
import torch
from helpers import trl_runs

import sparse_ft as sft

trl_runs.make_importable("peft", "trl", "datasets")

from sparse_ft.peft import SelectiveConfig  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers', about themselves
PATTERNS = ["*q_proj.weight", "*up_proj.weight", "*down_proj.weight"]


@pytest.fixture
def folder(tmp_path):
    trl_runs.language_model(tmp_path / "model")
    return tmp_path


def build(folder):
    return trl_runs.language_model(folder / "model")


def plan_of(folder, structure):
    return sft.select(
        build(folder), density=0.3, structure=structure, score="magnitude", targets=PATTERNS
    )


def with_adapter(run, folder, structure, checkpointing):
    config = SelectiveConfig(plan=plan_of(folder, structure))
    return run(build(folder), folder, checkpointing, peft_config=config)


def converted(folder, structure):
    model = build(folder)
    sft.convert(model, plan_of(folder, structure))
    return model


def assert_same(ours, theirs, folder):
    """Losses and weights of two runs, bit for bit; the base is still below the adapter."""
    losses = trl_runs.losses_of(ours)
    assert len(losses) == trl_runs.STEPS and losses == trl_runs.losses_of(theirs)
    base, want = build(folder).state_dict(), sft.revert(theirs.model).state_dict()
    with ours.model.disable_adapter():
        state = ours.model.state_dict()
        for name, tensor in base.items():
            key = f"base_model.model.{name}"
            layer = key.replace(".weight", ".base_layer.weight")
            assert torch.equal(state[layer if layer in state else key], tensor), name
    got = ours.model.merge_and_unload().state_dict()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert any(not torch.equal(got[name], base[name]) for name in want)


on_and_off = pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])


@on_and_off
def test_sft(folder, checkpointing):
    ours = with_adapter(trl_runs.sft_run, folder, "columns", checkpointing)
    theirs = trl_runs.sft_run(converted(folder, "columns"), folder, checkpointing)
    assert_same(ours, theirs, folder)


@on_and_off
@pytest.mark.parametrize("structure", ["columns", "entries"])
def test_dpo_without_a_second_model(folder, structure, checkpointing):
    ours = with_adapter(trl_runs.dpo, folder, structure, checkpointing)
    assert ours.ref_model is None
    theirs = trl_runs.dpo(
        converted(folder, structure), folder, checkpointing, ref_model=build(folder)
    )
    assert theirs.ref_model is not None
    assert_same(ours, theirs, folder)


@on_and_off
@pytest.mark.parametrize("structure", ["columns", "entries"])
def test_grpo_without_a_second_model(folder, structure, checkpointing):
    ours = with_adapter(trl_runs.grpo, folder, structure, checkpointing)
    assert ours.ref_model is None
    theirs = trl_runs.grpo(converted(folder, structure), folder, checkpointing)
    assert theirs.ref_model is not None
    assert_same(ours, theirs, folder)


def test_dpo_goes_on_from_an_adapter_with_a_copy_of_it_as_the_reference(folder):
    """TRL copies the adapter as "ref"; both hold the same entries."""
    import peft

    model = peft.get_peft_model(build(folder), SelectiveConfig(plan=plan_of(folder, "columns")))
    trl_runs.sft_run(model, folder, False)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}
    reference = build(folder)
    reference = peft.get_peft_model(reference, SelectiveConfig(plan=plan_of(folder, "columns")))
    reference.load_state_dict(model.state_dict())
    plain = reference.merge_and_unload()
    policy = converted(folder, "columns")
    for name, values in start.items():
        path = name.removeprefix("base_model.model.").replace(".selective_slot.default", "")
        with torch.no_grad():
            policy.get_parameter(path).copy_(values)
    ours = trl_runs.dpo(model, folder, False)
    assert ours.ref_model is None and "ref" in model.peft_config
    theirs = trl_runs.dpo(policy, folder, False, ref_model=plain)
    assert trl_runs.losses_of(ours) == trl_runs.losses_of(theirs)
    for name, values in start.items():
        assert torch.equal(model.get_parameter(name.replace(".default.", ".ref.")), values)
        assert not torch.equal(model.get_parameter(name), values)
