"""Opacus on selected entries: each example's gradient, clipped, is what a loop over them gives."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.architectures import build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparse_ft as sft
from sparse_ft.reparametrised import HeadOffsets, put

opacus = pytest.importorskip("opacus")
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping  # noqa: E402
from opacus.validators import ModuleValidator  # noqa: E402

import sparse_ft.dp  # noqa: E402

IDS = torch.randint(0, 20, (4, 7))
LAYER = "model.layers.0"


@pytest.fixture(autouse=True)
def quiet():
    """Opacus warns of torch's own hooks, and of seeds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


LLAMA = {
    f"{LAYER}.mlp.up_proj.weight": sft.Rows([0, 3]),
    f"{LAYER}.mlp.down_proj.weight": sft.Columns([1, 4]),
    f"{LAYER}.self_attn.q_proj.weight": sft.Blocks([[0, 1], [1, 0]], (4, 4)),
    f"{LAYER}.self_attn.o_proj.weight": sft.Entries([0, 3, 17]),
    "model.embed_tokens.weight": sft.Rows([3, 5, 9, 11]),
}
GPT2 = {
    "transformer.h.0.mlp.c_fc.weight": sft.Rows([0, 3]),
    "transformer.h.0.mlp.c_proj.weight": sft.Columns([1, 4]),
    "transformer.h.0.attn.c_attn.weight": sft.Entries([0, 3, 17]),
    "transformer.h.0.attn.c_attn.bias": "all",
}


def converted(kind, plan, dtype=torch.float64):
    model, _ = build(kind)
    model = model.to(dtype).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if kind == "GPT-2":
        plan = {name: what for name, what in plan.items() if what != "all"}
    sft.convert(model, plan)
    return model


def loss_of(model, ids):
    logits = model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:])


@pytest.mark.parametrize(("kind", "plan"), [("Llama", LLAMA), ("GPT-2", GPT2)])
def test_each_examples_gradient_is_that_of_a_loop(kind, plan):
    model = converted(kind, plan)
    plain = copy.deepcopy(model)
    if kind == "GPT-2":
        for each in (model, plain):
            each.transformer.h[0].attn.c_attn.bias.requires_grad_(True)
    trained = [p for p in plain.parameters() if p.requires_grad]
    want = []
    for example in IDS:
        want.append(torch.autograd.grad(loss_of(plain, example[None]), trained))
    wrapped = GradSampleModule(model)
    loss_of(wrapped, IDS).backward()
    samples = [p.grad_sample for p in model.parameters() if p.requires_grad]
    assert len(samples) == len(plan)
    for sample, *by_example in zip(samples, *want, strict=True):
        torch.testing.assert_close(sample, torch.stack(by_example), atol=1e-12, rtol=1e-10)


def test_a_private_step_is_the_clipped_sum_of_a_loop():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = TensorDataset(torch.randn(12, 6).double(), torch.randint(0, 3, (12,)))
    before = {name: p.clone() for name, p in net.named_parameters()}
    plan = {"0.weight": sft.Entries([0, 5, 9]), "2.weight": sft.Columns([1, 4])}
    sft.convert(net, plan)
    twin = copy.deepcopy(net)
    optimizer = sft.SelectiveAdamW([p for p in net.parameters() if p.requires_grad], lr=0.1)
    engine = opacus.PrivacyEngine()
    private, optimizer, loader = engine.make_private(
        module=net,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=4),
        noise_multiplier=1e-9,
        max_grad_norm=0.05,
    )
    trained = [p for p in twin.parameters() if p.requires_grad]
    plain = sft.SelectiveAdamW(trained, lr=0.1)
    steps = 0
    for x, target in loader:
        if len(x) == 0:
            continue
        optimizer.zero_grad()
        F.cross_entropy(private(x), target).backward()
        optimizer.step()
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        for each, its in zip(x, target):
            grads = torch.autograd.grad(F.cross_entropy(twin(each[None]), its[None]), trained)
            norm = torch.cat([grad.flatten() for grad in grads]).norm()
            for parameter, grad in zip(trained, grads):
                parameter.grad += grad * (0.05 / (norm + 1e-6)).clamp(max=1) / 4
        plain.step()
        steps += 1
        for a, b in zip((p for p in net.parameters() if p.requires_grad), trained, strict=True):
            torch.testing.assert_close(a, b, atol=1e-7, rtol=0)
    counted = sum(number for _, _, number in engine.accountant.history)
    assert counted == steps > 1
    sft.revert(net)
    for name, parameter in net.named_parameters():
        mask = plan[name].mask(parameter.shape) if name in plan else torch.zeros_like(parameter) > 0
        assert torch.equal(parameter[~mask], before[name][~mask])
        assert (parameter[mask] != before[name][mask]).all()


def test_norms_for_ghost_clipping():
    model = converted("Llama", LLAMA)
    plain = copy.deepcopy(model)
    trained = [p for p in plain.parameters() if p.requires_grad]
    want = []
    for example in IDS:
        grads = torch.autograd.grad(loss_of(plain, example[None]), trained)
        want.append(torch.cat([grad.flatten() for grad in grads]).norm())
    wrapped = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=1.0, use_ghost_clipping=True, loss_reduction="mean"
    )
    loss_of(wrapped, IDS).backward()
    torch.testing.assert_close(wrapped.get_norm_sample(), torch.stack(want))


def refusals():
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3))
    sft.convert(convolution, {"0.weight": sft.Rows([1])})
    tied, _ = build("Llama")
    tied.lm_head.weight = tied.model.embed_tokens.weight
    sft.convert(tied, {"model.embed_tokens.weight": sft.Rows([1])})
    heads, _ = build("Llama")
    put(heads, {f"{LAYER}.self_attn.o_proj": HeadOffsets([0], 8)})
    return {
        "0.weight.*SelectedParameter": convolution,
        "tied embedding": tied,
        "o_proj.*HeadOffsets": heads,
    }


def test_what_has_no_gradient_example_by_example_is_refused_by_name():
    for says, model in refusals().items():
        with pytest.raises(Exception, match=says):
            ModuleValidator.validate(model.train(), strict=True)


def test_an_optimiser_that_steps_in_the_backward_is_refused():
    model = converted("Llama", LLAMA)
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.clone() for p in trained]
    optimizer = sft.SelectiveAdamW(trained, lr=0.1, in_backward=True)
    wrapped = GradSampleModule(model)
    with pytest.raises(RuntimeError, match="Opacus clips.*in_backward=True"):
        loss_of(wrapped, IDS).backward()
    assert all(map(torch.equal, trained, before)) and optimizer is not None


def test_an_empty_batch_has_no_gradients():
    model = converted("Llama", LLAMA)
    layer = model.model.layers[0].mlp.up_proj
    empty = torch.zeros(0, 7, layer.in_features).double(), torch.zeros(0, 7, layer.out_features)
    samples = sparse_ft.dp.product_samples(layer, [empty[0]], empty[1].double())
    assert samples[layer.values].shape == (0, *layer.values.shape)
