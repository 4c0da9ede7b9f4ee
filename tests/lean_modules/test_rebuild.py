"""Inputs made again instead of kept.

Recognised by identity and version, right under everything that changes saving.
"""

import copy
import gc
import threading
import weakref

import pytest
import torch
import transformers
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft
from sparse_ft import rebuild

pytestmark = pytest.mark.usefixtures("on_device")

SELECTIONS = {
    "rows": lambda rows, columns: sft.Rows(torch.arange(0, rows, 3)),
    "columns": lambda rows, columns: sft.Columns(torch.arange(0, columns, 5)),
    "blocks": lambda rows, columns: sft.Blocks([(0, 0), (1, 1)], (4, 4)),
    "entries": lambda rows, columns: sft.Entries(torch.arange(0, rows * columns, 11)),
}
MODELS = {
    "Llama": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=20,
            use_cache=False,
        )
    ),
    "BERT": lambda: transformers.BertModel(
        transformers.BertConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=20,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    ),
    "GPT-2": lambda: transformers.GPT2Model(
        transformers.GPT2Config(
            n_embd=16,
            n_layer=2,
            n_head=2,
            vocab_size=20,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    ),
}
IDS = torch.arange(24).view(2, 12) % 20


def plan_of(model, kind):
    layers = [
        n
        for n, p in model.named_parameters()
        if p.dim() == 2 and "emb" not in n and "wte" not in n and "wpe" not in n
    ]
    return {
        name: SELECTIONS[kind](*sft.matrix_shape(model, name))
        for name in layers
        if "pooler" not in name
    }


@pytest.fixture(params=[(model, kind) for model in MODELS for kind in SELECTIONS], ids="-".join)
def twins(request):
    """(converted, converted and lean), in fp64."""
    name, kind = request.param
    torch.manual_seed(0)
    plain = MODELS[name]().double()
    lean = copy.deepcopy(plain)
    plan = plan_of(plain, kind)
    sft.convert(plain, plan)
    sft.convert(lean, plan, lean=True)
    for model in (plain, lean):
        if name != "GPT-2":
            model.enable_input_require_grads()
        model.train()
    return plain, lean


def gradients(model, run=None):
    model.zero_grad()
    out = (run or (lambda m: m(IDS).last_hidden_state))(model)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(plain, lean, run=None, tolerance=1e-5):
    want, got = gradients(plain), gradients(lean, run)
    assert want.keys() == got.keys()
    for name in want:
        assert (want[name] - got[name]).abs().max() <= tolerance * want[name].abs().max().clamp(
            min=1e-6
        ), name


def test_same_gradients_with_less_kept(twins):
    plain, lean = twins
    assert_same(plain, lean)
    before, after = (sft.memory.ledger(model, IDS).total for model in (plain, lean))
    assert after < before


def test_under_checkpointing(twins):
    plain, lean = twins
    for reentrant in (False, True):
        lean.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert_same(plain, lean)
        lean.gradient_checkpointing_disable()


def test_offloaded(twins):
    def run(model):
        with torch.autograd.graph.save_on_cpu():
            return model(IDS).last_hidden_state

    assert_same(*twins, run)


def test_under_autocast_no_weight_is_copied(twins):
    plain, lean = (model.float() for model in twins)

    def run(model):
        with torch.autocast(IDS.device.type, torch.bfloat16):
            return model(IDS).last_hidden_state

    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        out = run(lean)
    shapes = {
        p.shape
        for name, p in lean.named_parameters()
        if name.endswith("weight") and p.dim() == 2 and p.size(0) > 2
    }
    assert not [
        t.shape
        for t in held
        if t.dtype == torch.bfloat16 and (t.shape in shapes or t.T.shape in shapes)
    ]
    want, got = gradients(plain, run), gradients(lean, run)
    assert out.requires_grad
    for name in want:
        assert (want[name] - got[name]).abs().max() <= 0.1 * want[name].abs().max(), name


def norm_then_linear(kind="rows"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 6)).double()
    sft.convert(model, {"1.weight": SELECTIONS[kind](6, 8)}, lean=True)
    return model, torch.randn(5, 8, dtype=torch.float64, requires_grad=True)


def run_and_see(model, x, change=lambda t: t):
    """(output, what its linear layer was given, addresses of what was saved for backward)."""
    addresses = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: addresses.append(t.data_ptr()) or t, lambda t: t
    ):
        given = change(model[0](x))
        return model[1](given), given, addresses


def test_the_output_itself_is_not_saved():
    model, x = norm_then_linear()
    _, given, addresses = run_and_see(model, x)
    assert given.data_ptr() not in addresses and addresses.count(x.data_ptr()) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.add_(1),
        lambda t: t.mul_(2),
        lambda t: t.view(5, 8),
        lambda t: t.clone(),
        lambda t: t.detach().requires_grad_(),
    ],
)
def test_changed_in_place_or_copied_it_is_another_tensor(change):
    model, x = norm_then_linear()
    out, given, addresses = run_and_see(model, x, change)
    assert given.data_ptr() in addresses
    out.sum().backward()
    assert torch.allclose(model[1].values.grad, given.detach().sum(0).expand(2, 8))


def test_changing_what_it_is_made_of_raises():
    model, x = norm_then_linear()
    x = x * 1
    out = model(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_nothing_outlives_the_graph():
    model, x = norm_then_linear()
    given = model[0](x)
    source = weakref.ref(rebuild.source_of(given))
    out = model[1](given)
    out.sum().backward()
    assert source()._made is None  # the maker's backward let go of the copy
    del out, given
    gc.collect()
    assert source() is None
    inputs = weakref.ref(x)
    del x
    gc.collect()
    assert inputs() is None


@pytest.mark.parametrize("count, kept", [(1, (5, 1)), (2, (5, 128))], ids=["few", "more"])
def test_few_columns_are_copied(count, kept):
    """Of 128 features one is copied; for two the norm's own input serves."""
    model = torch.nn.Sequential(torch.nn.LayerNorm(128), torch.nn.Linear(128, 6)).double()
    sft.convert(model, {"1.weight": sft.Columns(torch.arange(count))}, lean=True)
    x = torch.randn(5, 128, dtype=torch.float64, requires_grad=True)
    out = model(x)
    assert out.grad_fn.saved_tensors[1].shape == kept
    out.sum().backward()
    want = torch.nn.functional.layer_norm(x, (128,)).sum(0)[:count].expand(6, count)
    torch.testing.assert_close(model[1].values.grad, want)


def test_twice_through_one_graph():
    model, x = norm_then_linear("columns")
    out = model(x)
    out.sum().backward(retain_graph=True)
    first = model[1].values.grad.clone()
    out.sum().backward()
    assert torch.allclose(model[1].values.grad, 2 * first)


def test_checkpointed_by_hand():
    model, x = norm_then_linear()
    model(x).sum().backward()
    want = model[1].values.grad.clone()
    for reentrant in (True, False):
        model.zero_grad()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        assert torch.allclose(model[1].values.grad, want)


def test_compiled():
    model, x = norm_then_linear()
    model(x).sum().backward()
    want = model[1].values.grad.clone()
    model.zero_grad()
    torch.compile(model, backend="aot_eager", fullgraph=True)(x).sum().backward()
    assert torch.allclose(model[1].values.grad, want)


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm, torch.nn.RMSNorm])
def test_made_of_something_changed_before_it_was_read_the_output_is_saved(norm):
    model, x = norm_then_linear()
    model[0] = norm(8).double()
    sft.lean(model)
    x = x * 1
    given = model[0](x)
    x.add_(1)
    (grad,) = torch.autograd.grad(model[1](given).sum(), model[1].values)
    assert torch.allclose(grad, given.detach().sum(0).expand(2, 8))


def test_a_backward_that_ends_before_the_maker_holds_no_copy():
    model, x = norm_then_linear()
    given = model[0](x)
    torch.autograd.grad(model[1](given).sum(), model[1].values)
    assert rebuild.source_of(given)._made is None


def test_any_number_of_outputs_is_known_as_long_as_their_graph_lives():
    model, x = norm_then_linear()
    outputs = [model[0](x) for _ in range(100)]
    assert all(rebuild.source_of(output) is not None for output in outputs)
    sources = [weakref.ref(rebuild.source_of(output)) for output in outputs]
    del outputs
    gc.collect()
    assert not any(source() for source in sources)


def test_what_other_threads_make_does_not_count():
    """It is not found, and what was made here stays: a checkpoint must save the same twice."""
    model, x = norm_then_linear()
    given = model[0](x)
    found, others = [], []

    def other():
        found.append(rebuild.source_of(given))
        others.extend(model[0](x) for _ in range(8))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [None] and rebuild.source_of(given) is not None


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_16_bit_layer_norm_is_made_again_bit_for_bit(kind):
    model, _ = norm_then_linear(kind)
    model.bfloat16()
    x = (torch.randn(64, 8) + 30).bfloat16().requires_grad_()
    given = model[0](x)
    source = rebuild.source_of(given)
    features = model[1]._sparse_ft_state.part[0]
    assert torch.equal(source.rebuild(source.tensors(), features), rebuild.select(given, features))
