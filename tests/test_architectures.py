"""Conversion of many architectures.

Same forward, right gradients, nothing else changed, and all of it undone.
"""

import copy
import io
import itertools
import pickle
import warnings

import pytest
import torch
from helpers import architectures
from helpers.architectures import ARCHITECTURES, backward, build, holder, outputs
from torch import nn

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")


@pytest.fixture(params=ARCHITECTURES)
def made(request):
    """(model, inputs, plan on every parameter of it that is not tied)."""
    model, inputs = build(request.param)
    return model, inputs, architectures.full_plan(model)


def frozen(model, plan):
    """A copy of the dense model in which what the plan names requires grad.

    Torch picks kernels by requires_grad.
    """
    twin = copy.deepcopy(model)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in plan)
    return twin


def converted(model, plan):
    twin = copy.deepcopy(model)
    sft.convert(twin, plan)
    return twin


def dense_gradients(model, inputs, plan):
    """{name: gathered dense gradient, or None}, and {name: the dense gradient as a matrix}."""
    backward(model, inputs)
    grads = {name: model.get_parameter(name).grad for name in plan}
    return {
        name: None if grad is None else grad.view(sft.matrix_shape(model, name))
        for name, grad in grads.items()
    }


def test_forward_is_equal_bit_for_bit(made):
    model, inputs, plan = made
    dense, selective = frozen(model, plan), converted(model, plan)
    for training in (True, False):
        for m in (dense, selective):
            m.train(training)
        assert torch.equal(outputs(selective, inputs), outputs(dense, inputs))
        if training or not has_fast_path(model):
            with torch.no_grad():
                assert torch.equal(outputs(selective, inputs), outputs(dense, inputs))


def has_fast_path(model):
    """torch's attention has an inference kernel of its own, which it does not use where hooks are
    registered.
    """
    return any(
        isinstance(m, (nn.TransformerEncoderLayer, nn.MultiheadAttention)) for m in model.modules()
    )


# Weights that hold all experts: the gradient of each is a product of its own, with its own order of
# sums (in fp64 it is the dense one to 1e-12: tests/experts).
EXPERTS = "model.layers.0.mlp.experts."
BY_ITSELF = (f"{EXPERTS}gate_up_proj", f"{EXPERTS}down_proj")


def test_gradient_of_an_alias_is_the_gathered_dense_gradient(made):
    model, inputs, plan = made
    _, plan = architectures.split(model, plan)
    want = dense_gradients(frozen(model, plan), inputs, plan)
    selective = converted(model, plan)
    backward(selective, inputs)
    assert any(grad is not None for grad in want.values())
    for name, what in plan.items():
        got = holder(selective, name).values.grad
        if want[name] is None:
            assert got is None, name
        elif name in BY_ITSELF:
            assert torch.allclose(got, what.gather(want[name]), rtol=1e-5, atol=1e-6), name
        else:
            assert torch.equal(got, what.gather(want[name])), name


def test_gradient_of_a_replaced_layer_is_as_exact_as_the_dense_one(made):
    model, inputs, plan = made
    plan, _ = architectures.split(model, plan)
    if not plan:
        pytest.skip("every parameter of this architecture is aliased")
    exact = dense_gradients(architectures.double(frozen(model, plan)), inputs, plan)
    dense = dense_gradients(frozen(model, plan), inputs, plan)
    selective = converted(model, plan)
    backward(selective, inputs)
    for name, what in plan.items():
        error = (
            (holder(selective, name).values.grad.double() - what.gather(exact[name])).abs().max()
        )
        assert error <= 2 * (dense[name].double() - exact[name]).abs().max(), name


def test_classes_and_keys(made):
    """Aliased modules keep class and keys; replaced ones get `values` beside their weight."""
    model, _, plan = made
    replaced, aliased = architectures.split(model, plan)
    selective = converted(model, plan)
    extra = {f"{name.removesuffix('weight')}values" for name in replaced}
    assert set(selective.state_dict()) == set(model.state_dict()) | extra
    owners = {name.rpartition(".")[0] for name in replaced}
    for path, module in model.named_modules():
        assert (type(selective.get_submodule(path)) is type(module)) == (path not in owners), path


@pytest.mark.parametrize("clone", ["deepcopy", "pickle", "torch.save"])
def test_copies_train_on_their_own(made, clone):
    model, inputs, plan = made
    original = converted(model, plan)
    twin = copied(original, clone)
    before = outputs(original, inputs).detach()
    assert torch.equal(outputs(twin, inputs), before)
    optimizer = sft.SelectiveAdamW(twin.parameters(), 1e-2, weight_decay=0)
    backward(twin, inputs)
    optimizer.step()
    assert not torch.equal(outputs(twin, inputs), before)
    assert torch.equal(outputs(original, inputs), before)
    grads = {name: holder(twin, name).values.grad for name in plan}
    moved = {name for name, grad in grads.items() if grad is not None and grad.any()}
    assert moved
    sft.revert(twin)
    for name, parameter in model.named_parameters():
        changed = twin.get_parameter(name) != parameter
        assert changed.any() == (name in moved), name
        if name in plan:
            shape = sft.matrix_shape(model, name)
            assert not (changed.view(shape) & ~plan[name].mask(shape)).any(), name


def copied(model, how):
    if how == "deepcopy":
        return copy.deepcopy(model)
    if how == "pickle":
        return pickle.loads(pickle.dumps(model))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_revert_gives_back_bytes_classes_and_flags(made):
    model, inputs, plan = made
    some = next(iter(dict(model.named_parameters())))
    model.get_parameter(some).requires_grad_(False)
    selective = converted(model, plan)
    backward(selective, inputs)
    sft.revert(selective)
    assert [(n, type(m)) for n, m in selective.named_modules()] == [
        (n, type(m)) for n, m in model.named_modules()
    ]
    assert [n for n, _ in selective.named_parameters()] == [n for n, _ in model.named_parameters()]
    for (name, a), b in zip(selective.named_parameters(), model.parameters(), strict=True):
        assert (
            torch.equal(a.view(torch.int32), b.view(torch.int32))
            and a.requires_grad == b.requires_grad
        ), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in selective.modules())
    assert selective.state_dict().keys() == model.state_dict().keys()
    assert vars(selective).keys() == vars(model).keys()


@pytest.mark.parametrize("name", ["BERT", "ViT", "Whisper"])
def test_bf16_weights_train_through_fp32_values(name):
    """Aliases get a key of their own where the weight cannot hold the values."""
    model, inputs = build(name)
    plan, model = architectures.full_plan(model), model.bfloat16()
    selective = converted(model, plan)
    _, aliased = architectures.split(model, plan)
    assert {f"{n}_selected.values" for n in aliased} <= set(selective.state_dict())
    assert torch.equal(outputs(selective, inputs), outputs(frozen(model, plan), inputs))
    optimizer = sft.SelectiveAdamW(selective.parameters(), 1e-5)
    for _ in range(2):
        backward(selective, inputs)
        optimizer.step()
    for n, what in plan.items():
        values = holder(selective, n).values
        assert values.dtype == torch.float32
        matrix = selective.get_parameter(n).detach().view(sft.matrix_shape(model, n))
        assert torch.equal(what.gather(matrix), values.bfloat16()), n
    assert all(p.dtype == torch.bfloat16 for p in sft.revert(selective).parameters())


def layouts_of(shape):
    """The same shape in memory in every order of its dimensions, dense, every second feature of it,
    or expanded.
    """
    for order in itertools.permutations(range(len(shape))):
        x = torch.randn([shape[i] for i in order]).permute(
            [order.index(i) for i in range(len(shape))]
        )
        yield x
        yield torch.stack((x, x), -1).flatten(-2)[..., ::2]
        yield x[:1].expand(x.shape)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape",
    [(6,), (3, 6), (2, 3, 6), (1, 3, 6), (3, 1, 6), (2, 1, 3, 6), (2, 3, 1, 6), (2, 2, 3, 6)],
)
def test_strided_input_gives_the_bits_of_the_original(shape, bias, autocast):
    """F.linear picks its kernel by strides and, for some of them, by whether the weight requires
    grad.
    """
    linear = nn.Linear(6, 5, bias=bias)
    selective = sft.nn.SelectiveLinear.from_linear(copy.deepcopy(linear), sft.Rows([0, 3]))
    if not autocast:
        linear, selective = linear.double(), selective.double()
    for x in layouts_of(shape):
        x = x if autocast else x.double()
        for with_gradients in (True, False):
            with (
                torch.set_grad_enabled(with_gradients),
                torch.autocast(x.device.type, torch.bfloat16, enabled=autocast),
            ):
                assert torch.equal(selective(x), linear(x)), x.stride()


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES if "Attention" in name or "Encoder" in name]
)
def test_inference_right_after_a_step(name):
    """torch's attention has inference kernels of its own that read their children's weights.

    They see trained ones.
    """
    model, inputs = build(name)
    plan = architectures.full_plan(model)
    selective = converted(model, plan)
    backward(selective, inputs)
    torch.optim.AdamW(selective.parameters(), 1e-2, fused=True).step()
    for parameter, what in plan.items():
        path, _, attribute = parameter.rpartition(".")
        matrix = (
            getattr(selective.get_submodule(path), attribute)
            .detach()
            .view(sft.matrix_shape(model, parameter))
        )
        assert torch.equal(what.gather(matrix), holder(selective, parameter).values), parameter
    dense = sft.revert(copy.deepcopy(selective)).eval()
    with torch.no_grad():
        got, plain = outputs(selective.eval(), inputs), outputs(dense, inputs)
        exact = outputs(copy.deepcopy(dense).double(), inputs)
        assert not torch.equal(plain, outputs(model.eval(), inputs))
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("structure", [sft.Columns([1, 2]), sft.Entries([3])])
def test_tied_weights_are_refused_by_name(structure):
    model, _ = build("GPT-2")
    for name in ("lm_head.weight", "transformer.wte.weight"):
        with pytest.raises(ValueError, match="tied") as caught:
            sft.convert(model, {"transformer.h.0.attn.c_attn.weight": structure, name: structure})
        assert all(
            tied in str(caught.value)
            for tied in (repr(name), "lm_head.weight", "transformer.wte.weight")
        )
    assert not any(isinstance(m, sft.nn.Selected) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    sft.convert(
        model, {"transformer.wte.weight": "all", "transformer.h.0.attn.c_attn.weight": structure}
    )


@pytest.mark.parametrize(
    "make", [lambda ps: sft.SelectiveAdamW(ps), lambda ps: torch.optim.AdamW(ps, fused=True)]
)
def test_a_selected_parameter_without_a_gradient_is_reported_by_name(make):
    """Once, at the first step that finds it so; the others train."""
    model = nn.ModuleDict(
        {"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4), "conv": nn.Conv1d(4, 4, 1)}
    )
    sft.convert(model, {f"{name}.weight": sft.Rows([1]) for name in model})
    optimizer = make(model.parameters())
    model["used"](torch.ones(2, 4)).sum().backward()
    with pytest.warns(UserWarning) as caught:
        optimizer.step()
    messages = [str(w.message) for w in caught if "no gradient" in str(w.message)]
    assert len(messages) == 2 and "idle.weight" in messages[0] and "conv.weight" in messages[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
