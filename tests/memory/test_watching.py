"""The ledger counts what autograd holds, each storage once, under the module that saved it, and
leaves no trace.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft

WIDTH, TOKENS = 64, 24
SIZE = WIDTH * TOKENS * 4


class Held(torch.autograd.Function):
    """Keeps tensors on ctx in ways that no hook sees."""

    @staticmethod
    def forward(ctx, x):
        ctx.plain, ctx.inside = x + 1, {"pair": (x + 2, 3)}
        return x * 1

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output


class Wide(nn.Module):
    def forward(self, x):
        return Held.apply(x)


def net(*modules):
    return nn.Sequential(
        *(modules or (nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)))
    )


def data():
    return torch.randn(TOKENS, WIDTH)


def test_each_storage_counts_once_under_the_module_that_saved_it_first():
    found = sft.memory.ledger(net(), data())
    # The second Linear saves the ReLU's output.
    assert {row.module: row.bytes for row in found.rows} == {"0": SIZE, "1": SIZE}
    assert found.total == 2 * SIZE and found.devices == {"cpu": 2 * SIZE}


def test_what_a_forward_drops_hides_nothing_that_gets_its_address():
    class Discards(nn.Module):
        def forward(self, x):
            for _ in range(8):
                (x * 1).square()
            return [(x * 1).square() for _ in range(8)]

    assert sft.memory.ledger(Discards(), data().requires_grad_()).total == 8 * SIZE


def test_a_view_counts_with_all_that_it_keeps_alive():
    class Sliced(nn.Module):
        def forward(self, x):
            return (x * 1)[:, :1].square()

    assert sft.memory.ledger(Sliced(), data().requires_grad_()).total == SIZE


def test_parameters_buffers_and_selections_are_the_models_own():
    model = net().requires_grad_(False)
    x = data().requires_grad_()
    assert {row.module for row in sft.memory.ledger(model, x).rows} == {"1"}
    sft.convert(model, {"0.weight": sft.Entries([1, 70]), "2.weight": sft.Columns([3])})
    assert {row.module: row.bytes for row in sft.memory.ledger(model, x).rows} == {
        "0": SIZE,
        "1": SIZE,
        "2": TOKENS * 4,
    }


def test_what_hangs_on_ctx_counts_and_goes_to_its_module():
    found = sft.memory.ledger(
        net(nn.Linear(WIDTH, WIDTH).requires_grad_(False), Wide()), data().requires_grad_()
    )
    assert [(row.module, row.tensors, row.bytes) for row in found.rows] == [("1", 2, 2 * SIZE)]


def test_outputs_that_are_not_saved_do_not_count():
    assert sft.memory.ledger(net(nn.Linear(WIDTH, 999)), data()).total == SIZE


def test_what_a_dropped_branch_saved_is_not_held():
    class Dropped(nn.Module):
        def forward(self, x):
            (x + 1).exp()
            return x + 1

    assert sft.memory.ledger(Dropped(), data().requires_grad_()).total == 0


def test_the_graph_is_freed_afterwards():
    seen = []

    class Seen(nn.Module):
        def forward(self, x):
            y = x.exp()
            seen.append(StorageWeakRef(y.untyped_storage()))
            return {"last": y.sigmoid()}

    assert sft.memory.ledger(Seen(), data().requires_grad_()).total == 2 * SIZE
    assert seen[0].expired()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_holds_the_checkpoints_only(use_reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.first = net(), nn.Linear(WIDTH, WIDTH).requires_grad_(False)

        def forward(self, x, mask):
            return checkpoint(
                lambda t: self.inner(t) * mask, self.first(x), use_reentrant=use_reentrant
            )

    mask = torch.randn(TOKENS, WIDTH)
    found = sft.memory.ledger(Checkpointed(), data().requires_grad_(), mask)
    state = torch.get_rng_state().nbytes  # with which dropout would run again
    assert found.total == 2 * SIZE + state  # the input and the mask that it closes over


@pytest.mark.parametrize("inside", [True, False])
def test_save_on_cpu_shows_where_things_are(inside):
    class Offloaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            with save_on_cpu(pin_memory=True):  # makes a copy also of what is on the CPU
                return self.inner(x)

    if inside:
        found = sft.memory.ledger(Offloaded(), data())
    else:
        with save_on_cpu(pin_memory=True):
            found = sft.memory.ledger(net(), data())
    # The first input; the ReLU's output for itself and the second layer; its weight.
    copies = 3 * SIZE + WIDTH * WIDTH * 4
    assert found.devices == {"cpu": copies}


def test_hooks_entered_inside_of_the_forward_are_seen_through():
    class Packed(nn.Module):
        def forward(self, x):
            with torch.autograd.graph.saved_tensors_hooks(
                lambda t: {"half": t.half()}, lambda p: p["half"].float()
            ):
                return x.exp()

    assert sft.memory.ledger(Packed(), data().requires_grad_()).total == SIZE // 2


def test_autocast_copies_count():
    model = net(nn.Linear(WIDTH, WIDTH, bias=False))
    with torch.autocast("cpu", torch.bfloat16):
        found = sft.memory.ledger(model, data())
    # The cast input; a second copy, of the weight, is not needed by a frozen input.
    assert found.total == SIZE // 2


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def hooks(model):
    return [
        len(getattr(m, name))
        for m in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]


@pytest.mark.parametrize("fails", [True, False])
def test_the_model_is_left_as_it_was(fails):
    class Fails(nn.Module):
        def forward(self, x):
            if fails:
                raise ArithmeticError
            return x

    model = net(nn.BatchNorm1d(WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH), Fails())
    before, hooked, random = state(model), hooks(model), torch.get_rng_state()
    x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    if fails:
        with pytest.raises(ArithmeticError):
            sft.memory.ledger(model, x)
    else:
        sft.memory.ledger(model, x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert hooks(model) == hooked and torch.equal(torch.get_rng_state(), random)
    assert (
        not nn.modules.module._global_forward_hooks
        and not nn.modules.module._global_forward_pre_hooks
    )
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert all(p.grad is None for p in model.parameters())


def test_it_runs_inside_of_no_grad():
    with torch.no_grad():
        assert sft.memory.ledger(net(), data()).total == 2 * SIZE


def test_a_convnet():
    model = net(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    found = sft.memory.ledger(model, torch.randn(2, 3, 8, 8))
    image, maps, statistics = 2 * 3 * 64 * 4, 2 * 8 * 36 * 4, 8 * 4
    assert {row.module: row.bytes for row in found.rows} == {
        "0": image,
        "1": maps + 2 * statistics,
        "2": maps,
    }


def test_a_compiled_model_holds_the_same():
    model, x = net(), data()
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Dynamo does not know")
        found = sft.memory.ledger(torch.compile(model, backend="aot_eager", fullgraph=True), x)
    assert found.total == sft.memory.ledger(model, x).total


def test_sparse_tensors_count_with_all_their_parts():
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.ones(5))

        def forward(self, x):
            matrix = torch.sparse_coo_tensor(
                torch.arange(5).expand(2, 5).clone(), self.values, (WIDTH, WIDTH)
            )
            return torch.sparse.mm(matrix, x.T)

    assert sft.memory.ledger(Sparse(), data()).total >= SIZE + 2 * 5 * 8


def test_the_table_sums_alike_modules_and_says_bytes_a_token(tmp_path):
    model = nn.ModuleDict({"layers": nn.ModuleList(net() for _ in range(3))})

    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(7, WIDTH), model

        def forward(self, input_ids):
            x = self.embed(input_ids)
            for layer in self.body["layers"]:
                x = layer(x)
            return {"logits": x}

    found = sft.memory.ledger(Looped(), input_ids=torch.zeros(2, TOKENS // 2, dtype=torch.long))
    text = str(found)
    assert "body.layers.*.1  ReLU             3" in text
    assert f"{found.total / TOKENS:,.0f} bytes a token" in text and found.tokens == TOKENS
    assert (
        sum(row.bytes for row, _ in found.groups)
        == found.total
        == sum(row.bytes for row in found.rows)
    )
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "ledger.svg")
    assert (tmp_path / "ledger.svg").stat().st_size > 1000


def test_plot_without_matplotlib_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        sft.memory.ledger(net(), data()).plot("unused.png")


LAYER = dict(
    hidden_size=1024,
    intermediate_size=2816,
    num_attention_heads=16,
    num_key_value_heads=8,
    vocab_size=64,
)


@pytest.mark.parametrize("frozen, expected", [(False, 22.0), (True, 15.29)])
def test_the_anchor_of_one_llama_layer(frozen, expected):
    transformers = pytest.importorskip("transformers")

    def held(layers):
        config = transformers.LlamaConfig(
            num_hidden_layers=layers, max_position_embeddings=64, use_cache=False, **LAYER
        )
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
        if frozen:
            model.requires_grad_(False)
            model.enable_input_require_grads()
        return sft.memory.ledger(model, input_ids=torch.ones(1, 16, dtype=torch.long)).total

    assert (held(4) - held(2)) / 2 / 16 / 1024 / 2 == pytest.approx(expected, abs=0.05)


def test_gradient_checkpointing_of_transformers():
    transformers = pytest.importorskip("transformers")
    small = {
        **LAYER,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = transformers.LlamaConfig(
        num_hidden_layers=3, max_position_embeddings=64, use_cache=False, **small
    )
    model = transformers.LlamaForCausalLM(config).train()
    ids = torch.ones(2, 16, dtype=torch.long)
    plain = sft.memory.ledger(model, input_ids=ids, labels=ids).total
    model.gradient_checkpointing_enable()
    assert sft.memory.ledger(model, input_ids=ids, labels=ids).total < plain / 3
