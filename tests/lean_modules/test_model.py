"""sft.lean on real architectures: same results and gradients, less kept, composes with conversion
in either order, undone.
"""

import copy
import io
import pickle

import pytest
import torch
import transformers
from helpers import architectures
from helpers.architectures import ARCHITECTURES, backward, build, double, outputs

import sparse_ft as sft
from sparse_ft.lean_modules import is_lean

pytestmark = pytest.mark.usefixtures("made_on_device")

TRANSFORMERS = ("BERT", "GPT-2", "Llama", "Mixtral", "Qwen3-MoE", "ViT", "T5", "Whisper")


@pytest.fixture(params=ARCHITECTURES)
def made(request):
    return build(request.param)


def made_lean(model):
    twin = copy.deepcopy(model)
    sft.lean(twin)
    return twin


def gradients(model, inputs):
    """{name: gradient} and the outputs, of the outputs' product with a fixed random tensor."""
    out = backward(model, inputs)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, out


def furthest(a, b):
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def test_same_results_in_double_precision(made):
    model, inputs = double(made[0]), made[1]
    lean = made_lean(model)
    want, out = gradients(model, inputs)
    got, lean_out = gradients(lean, inputs)
    # transformers' norms round to fp32 inside, ours do not
    tolerance = 1e-9 if not has_fp32_norms(model) else 2e-5
    assert (out - lean_out).abs().max() <= tolerance * out.abs().max()
    assert furthest(want, got) <= tolerance * max(g.abs().max().item() for g in want.values())


def has_fp32_norms(model):
    return any(
        "RMSNorm" in type(m).__name__ or type(m).__name__ == "T5LayerNorm" for m in model.modules()
    )


def test_error_at_most_twice_the_originals(made):
    model, inputs = made
    truth, true_out = gradients(made_lean(double(copy.deepcopy(model))), inputs)
    ours, our_out = gradients(made_lean(model), inputs)
    theirs, their_out = gradients(model, inputs)
    floor = 4 * torch.finfo(torch.float32).eps
    largest = max(g.abs().max().item() for g in truth.values())
    assert (
        furthest({"": our_out}, {"": true_out})
        <= 2 * furthest({"": their_out}, {"": true_out}) + floor * true_out.abs().max()
    )
    assert furthest(ours, truth) <= 2 * furthest(theirs, truth) + floor * largest


@pytest.mark.parametrize("lean_first", [True, False])
def test_composes_with_conversion(made, lean_first):
    model, inputs = double(made[0]), made[1]
    plan = architectures.full_plan(model)
    born = copy.deepcopy(model)
    plain = copy.deepcopy(model)
    sft.convert(plain, plan)
    if lean_first:
        sft.lean(model)
        sft.convert(model, plan)
    else:
        sft.convert(model, plan, lean=True)
    want, out = gradients(plain, inputs)
    got, lean_out = gradients(model, inputs)
    tolerance = 1e-9 if not has_fp32_norms(model) else 2e-5
    assert (out - lean_out).abs().max() <= tolerance * out.abs().max()
    assert furthest(want, got) <= tolerance * max(g.abs().max().item() for g in want.values())
    sft.revert(model)
    assert not any(is_lean(m) or "forward" in m.__dict__ for m in model.modules())
    assert all(torch.equal(p, born.get_parameter(name)) for name, p in model.named_parameters())
    assert model.state_dict().keys() == born.state_dict().keys()


def test_copies_and_pickles_run_on_their_own(made):
    model, inputs = made
    sft.lean(model)
    out = outputs(model, inputs)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(outputs(twin, inputs), out)
        for parameter in twin.parameters():
            parameter.data.mul_(2)
        assert not torch.equal(outputs(twin, inputs), out)
        assert torch.equal(outputs(model, inputs), out)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_keeps_less(name):
    model, inputs = build(name)
    model.requires_grad_(False)
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
    before = sft.memory.ledger(model, **inputs).total
    report = sft.lean(model)
    assert report.changed
    assert sft.memory.ledger(model, **inputs).total <= before


def test_again_changes_nothing_and_revert_needs_something_to_undo():
    model, _ = build("Llama")
    first = sft.lean(model)
    forwards = {name: m.forward for name, m in model.named_modules()}
    assert sft.lean(model).changed == first.changed
    assert forwards == {name: m.forward for name, m in model.named_modules()}
    sft.revert(model)
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="not converted"):
        sft.revert(model)


def test_report_says_what_is_left():
    model, _ = build("Llama")
    model.model.layers[0].mlp.act_fn = torch.nn.Tanh()
    report = sft.lean(model)
    assert "model.layers.0.mlp" in report.left and "Tanh" in str(report)
    assert "model.norm" in report.changed


def test_an_unknown_forward_is_left_alone():
    class OtherRMSNorm(transformers.models.llama.modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states):
            return 2 * super().forward(hidden_states)

    OtherRMSNorm.__module__ = "transformers.models.other"
    model = torch.nn.Sequential(OtherRMSNorm(4))
    assert sft.lean(model).left == ["0"]
    assert model(torch.ones(1, 4))[0, 0].item() == pytest.approx(2, rel=1e-4)


def test_an_activation_in_place_is_left_alone():
    model = torch.nn.Sequential(torch.nn.SiLU(inplace=True), torch.nn.SiLU())
    assert sft.lean(model).left == ["0"] and sft.lean(model).changed == ["1"]
    x = torch.ones(3)
    model[0](x)
    assert x[0] != 1


@pytest.mark.parametrize("fp32", ["gate_proj", "up_proj"])
def test_gate_and_up_of_two_dtypes(fp32):
    model, inputs = build("Llama")
    mlp = model.to(torch.bfloat16).model.layers[0].mlp
    getattr(mlp, fp32).float()
    mlp.down_proj.float()
    plain = copy.deepcopy(mlp)
    sft.lean(mlp)
    for name in ("gate_proj", "up_proj"):
        for twin in (mlp, plain):
            layer = getattr(twin, name)
            layer.register_forward_pre_hook(lambda m, args: (args[0].to(m.weight.dtype),))
    results = []
    for twin in (plain, mlp):
        x = torch.randn(
            2, 3, 16, generator=torch.Generator(torch.get_default_device()).manual_seed(0)
        ).requires_grad_()
        out = twin(x)
        out.sum().backward()
        results.append((out, x.grad))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*results, strict=True))
