"""`sft.units` on models of one's own: what it leaves as it was, what it cannot decide, plans."""

import types

import pytest
import torch
import torch.nn.functional as F
from helpers.unit_models import build
from helpers.unit_oracle import Found, Oracle, columns_of, entries_of
from torch import nn
from torch.autograd.function import once_differentiable

import sparse_ft as sft


class Gated(nn.Module):
    """A gated MLP whose two halves are interleaved, with dropout and a running statistic."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(6, 10)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.down = nn.Linear(5, 6, bias=False)
        self.head = nn.Linear(6, 2)
        self.unused = nn.Linear(6, 6)
        self.cast = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x):
        self.calls += 1
        self.last = torch.rand(2)  # another tensor, of random numbers
        both = self.both(x)
        hidden = self.norm(both[:, ::2].sigmoid() * both[:, 1::2])
        x = torch.layer_norm(x + self.down(self.drop(hidden)), (6,))
        weight = self.cast.weight * 2  # no view of it: no product is seen
        return self.head(x + F.linear(x, weight))


class Routed(nn.Module):
    """Experts in a list: each token goes to one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.router = nn.Linear(6, 3)
        self.experts = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])

    def forward(self, x):
        x = self.embed(x).tanh()
        choice = self.router(x).argmax(-1)
        out = x.clone()
        for number, expert in enumerate(self.experts):
            mine = choice == number
            if mine.any():
                out[mine] = out[mine] + expert(x[mine])
        return torch.layer_norm(out, (6,))


def everything(model):
    """What finding must not change."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    training = [module.training for module in model.modules()]
    buffers = [id(buffer) for buffer in model.buffers()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    versions = [p._version for p in model.parameters()]
    return state, (
        flags,
        gradients,
        training,
        buffers,
        hooks,
        versions,
        torch.get_rng_state().tolist(),
    )


def test_the_model_is_left_as_it_was():
    model = Gated()
    model.drop.eval()  # a mode of its own
    model.both.bias.requires_grad_(False)
    seen = []
    model.register_forward_hook(lambda *_: seen.append(True))
    model.down.weight.grad = torch.ones(6, 5)
    state, rest = everything(model)
    units = sft.units(model, torch.randn(9, 6, generator=torch.Generator().manual_seed(0)))
    after, rest_after = everything(model)
    assert seen and rest == rest_after
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert [unit.name for unit in units["channels"]] == [f"down/channels/{i}" for i in range(5)]
    third = {(part.parameter, part.dimension): part.index for part in units["channels"][3].parts}
    assert third == {
        ("both.weight", 0): (6, 7),
        ("both.bias", 0): (6, 7),
        ("norm.weight", 0): (3,),
        ("norm.bias", 0): (3,),
        ("down.weight", 1): (3,),
    }


def test_the_model_is_left_as_it_was_when_it_fails():
    model = Gated()
    _, rest = everything(model)
    with pytest.raises(RuntimeError):
        sft.units(model, torch.randn(9, 7, generator=torch.Generator().manual_seed(0)))
    assert everything(model)[1] == rest


def test_what_cannot_be_decided_is_named():
    units = sft.units(Gated(), torch.randn(9, 6))
    assert set(units.undecided) == {"unused.weight", "cast.weight"}
    assert "no gradient" in units.undecided["unused.weight"]
    assert "otherwise than by a product" in units.undecided["cast.weight"]
    assert "unused.weight" in str(units)


class Attention(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True, **sizes)
        self.kdim = self.attention.kdim

    def forward(self, x):
        other = x[..., : self.kdim]
        logits = self.attention(x, other, other, need_weights=False)[0]
        return types.SimpleNamespace(logits=logits)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 6, "add_bias_kv": True}])
def test_heads_of_torchs_attention_are_those_of_brute_force(sizes):
    model = Attention(**sizes).double().eval()
    torch.nn.init.normal_(model.attention.in_proj_bias)
    batch = {"x": torch.randn(2, 5, 8).double()}
    units = sft.units(model, batch)
    oracle = Oracle(model, batch)
    alive = set(map(oracle.name_of, oracle.alive.nonzero().flatten().tolist()))
    found = {
        Found(columns_of(unit, oracle.named), entries_of(unit.makes, oracle.named) & alive)
        for unit in units["heads"]
    }
    assert len(found) == 4 and found == oracle.of_single_consumers()
    assert not units.undecided
    for whole, query in zip(units["heads"], units["query_heads"], strict=True):
        assert query.takes == whole.takes
        for part in query.makes:
            of_whole = {p.parameter: p.index for p in whole.makes}[part.parameter]
            assert part.index == of_whole[:2] and max(part.index) < 8


def test_two_groups_that_one_layer_reads_have_sites_of_their_own():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.down = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 2)

        def forward(self, x):
            return self.down(torch.cat([self.a(x).tanh(), self.b(x).tanh()], 1))

    units = sft.units(Joined(), torch.randn(6, 4))
    assert {group.site: group.count for group in units.of("channels")} == {"down": 3, "down#2": 5}
    assert units["channels"][3].takes[0].index == (3,)


class Hidden(torch.autograd.Function):
    """Pairs of neighbours multiplied; its backward's own derivative is nobody's (a kernel's)."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x[:, ::2] * x[:, 1::2]

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x.data)
        out[:, ::2], out[:, 1::2] = grad.data * x.data[:, 1::2], grad.data * x.data[:, ::2]
        return out


class Once(Hidden):
    """The same, which says so."""

    backward = staticmethod(once_differentiable(Hidden.backward))


@pytest.mark.parametrize("function", [Hidden, Once])
def test_functions_without_a_second_derivative(function):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.down = nn.Linear(5, 12), nn.Linear(6, 3)

        def forward(self, x):
            return self.down(function.apply(self.both(x)))

    channels = sft.units(Gate(), torch.randn(7, 5))["channels"]
    assert [unit.makes[0].index for unit in channels] == [(2 * i, 2 * i + 1) for i in range(6)]


def test_experts_in_a_list_are_those_that_share_the_tokens():
    model = Routed()
    units = sft.units(model, torch.randn(16, 4))
    assert [unit.name for unit in units["experts"]] == [f"experts/experts/{i}" for i in range(3)]
    assert {part.parameter for part in units["experts"][1].parts} == {
        "experts.1.weight",
        "experts.1.bias",
    }
    assert not units["layers"]
    chain = nn.Sequential(nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])[0], nn.Linear(4, 4))
    assert not sft.units(chain, torch.randn(5, 4))["experts"]


def test_layers_neurons_and_embedding_rows():
    model = nn.Sequential(
        nn.Embedding(7, 4), nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), nn.LayerNorm(4)
    )
    units = sft.units(model, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert [unit.name for unit in units["layers"]] == [f"1/layers/{i}" for i in range(3)]
    assert len(units["neurons"]) == 12 and len(units["embedding_rows"]) == 7
    plan = units.plan([units["layers"][1], units["embedding_rows"][3], units["embedding_rows"][5]])
    assert dict(plan) == {"0.weight": sft.Rows([3, 5]), "1.1.weight": "all", "1.1.bias": "all"}


def test_a_plan_of_units_has_the_simplest_selections():
    model, batch = build("Qwen3-MoE")
    units = sft.units(model, batch)
    layer = "model.layers.0."
    plan = units.plan(units["heads"][:1])
    assert plan[f"{layer}self_attn.q_proj.weight"] == sft.Rows(list(range(8)))
    assert plan[f"{layer}self_attn.o_proj.weight"] == sft.Columns(list(range(8)))
    plan = units.plan([units["channels"][7]])  # the third channel of the second expert
    assert plan[f"{layer}mlp.experts.gate_up_proj"] == sft.Rows([12, 17])
    assert plan[f"{layer}mlp.experts.down_proj"] == sft.Blocks([(1, 2)], (8, 1))
    plan = units.plan(units["experts"][1:2], targets="*down_proj")
    assert dict(plan) == {f"{layer}mlp.experts.down_proj": sft.Rows(list(range(8, 16)))}
    with pytest.raises(ValueError, match="none has a parameter that targets"):
        units.plan(units["heads"], targets="*.gate")
    report = sft.convert(model, units.plan(units["channels"][:2]))
    assert report.trainable == 2 * 3 * 8


def test_rows_and_columns_of_one_parameter_are_entries():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    units = sft.units(model, torch.randn(5, 3))
    first, second = units.of("channels")
    plan = units.plan([first.unit(0), second.unit(1)], targets="2.weight")
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 0] = mask[1] = True
    assert plan["2.weight"] == sft.from_mask(mask)


def test_refused_by_name():
    with pytest.raises(ValueError, match="batch: the model has no dummy_inputs"):
        sft.units(Gated())
    with pytest.raises(TypeError, match="model: expected an nn.Module"):
        sft.units("Gated")
    with pytest.raises(ValueError, match="kind: expected 'heads' or"):
        sft.units(Gated(), torch.randn(9, 6))["head"]


def test_wrong_arguments_are_named():
    model = Gated()
    with pytest.raises(ValueError, match="batch: it has no numbers"):
        sft.units(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), torch.randn(0, 6))
    with pytest.raises(TypeError, match="loss: expected a function"):
        sft.units(model, torch.randn(9, 6), loss=3)
    units = sft.units(model, torch.randn(9, 6))
    with pytest.raises(TypeError, match="units: expected a list of units"):
        units.plan("channels")
    with pytest.raises(TypeError, match="units: expected what sft.units gives"):
        sft.select(model, structure="channels", density=0.5, score="random", units=3)


@pytest.mark.parametrize("name", ["Llama", "Qwen3-MoE", "ResNet"])
def test_a_converted_and_lean_model_is_looked_at_as_it_was(name):
    model, batch = build(name)
    before = sft.units(model, batch)
    names = [n for n, p in model.named_parameters() if p.dim() > 1]
    kinds = [sft.Rows([0, 1]), sft.Columns([1]), "all"]
    sft.convert(model, {n: kinds[at % 3] for at, n in enumerate(names)}, lean=True)
    logits = model(**batch).logits
    state, rest = everything(model)
    units = sft.units(model, batch)
    after, rest_after = everything(model)
    assert rest == rest_after and all(torch.equal(after[n], x) for n, x in state.items())
    assert units.kinds == before.kinds and units.undecided == before.undecided
    assert all(units[kind] == before[kind] for kind in units.kinds)
    assert torch.equal(model(**batch).logits, logits)
    lean, batch = build(name)
    sft.lean(lean)
    assert str(sft.units(lean, batch)) == str(before)


@pytest.mark.filterwarnings("ignore:batches")
def test_heads_are_chosen_anew_in_a_converted_model():
    model, batch = build("Llama")
    settings = {"structure": "heads", "density": 0.5, "batches": [batch]}
    first = sft.select(model, score="random", **settings)
    sft.convert(model, first)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    taken = first["model.layers.0.self_attn.q_proj.weight"].index.tolist()
    others = [row for row in range(16) if row not in taken]
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.values.zero_()
    again = sft.select(model, score="magnitude", targets="*self_attn*", **settings)
    assert again["model.layers.0.self_attn.q_proj.weight"].index.tolist() == others
    report = sft.reselect(model, optimizer, again)
    assert {each.joined for each in report} == {64, 32}


def test_what_cannot_be_looked_at_says_the_way_out():
    class Odd(nn.Parameter):
        pass

    model = Gated()
    sft.convert(model, {"down.weight": sft.Columns([1])})
    model.unused.weight = Odd(torch.randn(6, 6))
    with pytest.raises(ValueError, match=r"'unused.weight' is a Odd; ask sft.units before"):
        sft.units(model, torch.randn(9, 6))


def test_a_transformers_model_brings_inputs_of_its_own():
    model, _ = build("Llama")
    assert len(sft.units(model)["heads"]) == 2
