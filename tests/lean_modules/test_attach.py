"""A lean forward is a bound method with the class's signature.

Trainers, accelerate, copies and pickles treat it as one.
"""

import copy
import inspect
import pickle
import types

import pytest
import torch
from helpers.architectures import TOKENS, build
from torch import nn

import sparse_ft as sft
from sparse_ft.lean_modules import is_lean
from sparse_ft.lean_modules.attach import ATTRIBUTES

pytestmark = pytest.mark.usefixtures("made_on_device")

IDS = TOKENS["input_ids"]


@pytest.fixture
def llama():
    model, _ = build("Llama")
    return model, sft.lean(model, loss=True)


def test_every_lean_forward_is_a_bound_method_with_the_class_s_signature(llama):
    model, report = llama
    for name in report.changed:
        module = model.get_submodule(name)
        given = [key for key in ATTRIBUTES if key in module.__dict__]
        assert given
        for key in given:
            method, own = getattr(module, key), getattr(type(module), key)
            assert isinstance(method, types.MethodType) and method.__self__ is module
            assert inspect.signature(method) == inspect.signature(types.MethodType(own, module))
            assert (method.__name__, method.__doc__) == (own.__name__, own.__doc__)


def test_transformers_trainer_keeps_the_columns(llama, tmp_path, device):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, _ = llama
    settings = transformers.TrainingArguments(
        tmp_path,
        max_steps=1,
        use_cpu=device.type == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    row = IDS[0].cpu()
    rows = [{"input_ids": row, "labels": row, "a column of another": row}] * 2
    assert transformers.Trainer(model, settings, train_dataset=rows).train().training_loss > 0


def test_generate_takes_the_arguments_of_the_class(llama):
    model, _ = llama
    more = dict(position_ids=torch.arange(3)[None], max_new_tokens=2, do_sample=False)
    got = model.generate(IDS[:1, :3], **more)
    assert torch.equal(got, sft.revert(model).generate(IDS[:1, :3], **more))


@pytest.fixture
def prepared(llama, device):
    accelerate = pytest.importorskip("accelerate")
    # One a process, and a Trainer may have made it.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision="bf16")
    yield accelerator, llama[0], accelerator.prepare(llama[0])
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_wraps_and_unwraps(prepared):
    accelerator, model, wrapped = prepared
    loss = wrapped(input_ids=IDS, labels=IDS).loss
    unwrapped = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    assert unwrapped is model and is_lean(model)
    out = model(input_ids=IDS, labels=IDS)
    assert out.logits is None and torch.isclose(out.loss, loss, rtol=1e-2)


def test_after_revert_accelerate_s_wrapper_calls_the_class_s_forward(prepared):
    accelerator, model, wrapped = prepared
    sft.revert(model)
    assert wrapped(input_ids=IDS, labels=IDS).logits is not None
    unwrapped = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    assert unwrapped(input_ids=IDS, labels=IDS).logits.dtype == torch.float32


def test_selective_linear_from_a_lean_linear_trains():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    sft.lean(model)
    model[0] = sft.nn.SelectiveLinear.from_linear(model[0], sft.Columns([1, 4]))
    x = torch.linspace(-1, 1, 40).view(5, 8)
    before = model(x)
    before.pow(2).sum().backward()
    assert model[0].values.grad.any()
    with torch.no_grad():
        model[0].values.add_(1)
    assert (model(x) - before).abs().max() > 0


def norm_twice_as_large(norm):
    norm._parameters = {name: nn.Parameter(2 * p.detach()) for name, p in norm._parameters.items()}
    return norm


@pytest.mark.parametrize(
    ("make", "stays_lean"),
    [
        (copy.copy, False),
        (copy.deepcopy, True),
        (lambda module: pickle.loads(pickle.dumps(module)), True),
        (lambda module: module._replicate_for_data_parallel(), True),
    ],
    ids=["copy", "deepcopy", "pickle", "replica of DataParallel"],
)
def test_a_copy_runs_on_its_own(make, stays_lean):
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    sft.lean(nn.Sequential(norm))
    x = torch.randn(3, 8)
    once = norm(x)
    for twin in (make(norm), make(make(norm))):
        twin._parameters = dict(norm._parameters)
        norm_twice_as_large(twin)
        assert torch.allclose(twin(x), 2 * once) and torch.equal(norm(x), once)
        assert is_lean(norm) and is_lean(twin) is stays_lean
        assert all(
            method.__self__ is twin
            for method in vars(twin).values()
            if isinstance(method, types.MethodType)
        )


def test_a_shallow_copy_can_be_made_lean_and_undone_by_itself():
    norm = nn.LayerNorm(8)
    sft.lean(nn.Sequential(norm))
    twin = copy.copy(norm)
    model = nn.Sequential(twin)
    sft.lean(model)
    assert twin.forward.__self__ is twin
    sft.revert(model)
    assert is_lean(norm) and not is_lean(twin)


def test_a_class_that_says_what_it_pickles_is_asked():
    class Light(nn.Linear):
        def __getstate__(self):
            return {name: value for name, value in self.__dict__.items() if name != "cache"}

    layer = Light(2, 2)
    layer.norm, layer.cache = nn.LayerNorm(2), "large"
    sft.convert(layer, {"norm.weight": "all"}, lean=True)
    sft.lean(nn.Sequential(layer.norm))
    twin = copy.deepcopy(layer)
    assert not hasattr(twin, "cache") and is_lean(twin.norm)


def test_revert_leaves_nothing_of_it(llama):
    model, _ = llama
    sft.revert(model)
    born, _ = build("Llama")
    for module, twin in zip(model.modules(), born.modules(), strict=True):
        assert module.__dict__.keys() == twin.__dict__.keys()


def test_replicas_of_data_parallel_take_the_lean_loss(llama):
    """As nn.DataParallel makes them: their parameters are plain attributes, computed from the
    model's.
    """
    model, _ = llama
    replicas = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, replica in replicas.items():
        replica._modules.update({name: replicas[child] for name, child in module._modules.items()})
        for name, parameter in module._parameters.items():
            replica.__dict__[name] = None if parameter is None else 1 * parameter
    want, got = (twin(input_ids=IDS, labels=IDS) for twin in (model, replicas[model]))
    assert got.logits is None and torch.equal(got.loss, want.loss)
    got.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
