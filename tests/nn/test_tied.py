"""Rows of a tied embedding: both uses train them, and everything else stays as it was."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparse_ft as sft
from sparse_ft.nn import SelectiveEmbedding, TiedLinear

pytestmark = pytest.mark.usefixtures("on_device")
VOCABULARY, WIDTH = 11, 8
ROWS = [1, 3, 10]
TOKENS = torch.tensor([[1, 3, 5, 3], [10, 0, 2, 1]])


class Scaled(nn.Embedding):
    """As BART's: a class of its own, which reads the weight."""

    def forward(self, input):
        return super().forward(input) * 3


class Tied(nn.Module):
    def __init__(self, bias=True, scaled=False, head_first=False):
        super().__init__()
        torch.manual_seed(0)
        if head_first:
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.middle = nn.Linear(WIDTH, WIDTH)
        if scaled:
            self.again = Scaled(VOCABULARY, WIDTH)
            self.again.weight = self.embed.weight
        if not head_first:
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        hidden = self.middle(self.embed(tokens))
        if hasattr(self, "again"):
            hidden = hidden + self.again(tokens)
        return self.head(hidden.tanh())


def loss_of(model, tokens=TOKENS):
    return F.cross_entropy(model(tokens).flatten(0, 1).double(), tokens.flip(1).flatten())


def converted(model, name="embed.weight", **settings):
    sft.convert(model, {name: sft.Rows(ROWS)}, **settings)
    return model


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
@pytest.mark.parametrize(
    "kind", [{}, {"bias": False}, {"scaled": True}, {"head_first": True}], ids=str
)
def test_the_gradient_of_all_uses_arrives_in_the_one_values(kind, name):
    dense = Tied(**kind).double()
    model = converted(copy.deepcopy(dense), name)
    assert torch.equal(model(TOKENS), dense(TOKENS))
    loss_of(dense).backward()
    loss_of(model).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained == [model.embed.values] and model.embed.values.shape == (len(ROWS), WIDTH)
    torch.testing.assert_close(
        model.embed.values.grad, dense.embed.weight.grad[ROWS], rtol=1e-12, atol=1e-15
    )
    assert model.embed.weight.grad is None


def ours(parameters):
    return sft.SelectiveAdamW(parameters, lr=0.05)


def in_backward(parameters):
    return sft.SelectiveAdamW(parameters, lr=0.05, in_backward=True)


def torchs(parameters):
    return torch.optim.AdamW(parameters, lr=0.05)


@pytest.mark.parametrize("make", [ours, in_backward, torchs])
@pytest.mark.parametrize("scaled", [False, True])
def test_training_equals_masked_dense_training(make, scaled):
    dense = Tied(scaled=scaled).double()
    model = converted(copy.deepcopy(dense))
    before = dense.embed.weight.detach().clone()
    optimizer = make([p for p in model.parameters() if p.requires_grad])
    masked = torch.optim.AdamW([dense.embed.weight], lr=0.05, weight_decay=0)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        masked.zero_grad()
        loss_of(dense).backward()
        others = torch.ones(VOCABULARY, dtype=torch.bool)
        others[ROWS] = False
        dense.embed.weight.grad[others] = 0
        masked.step()
    state = optimizer.state[model.embed.values]
    moments = [each for each in state.values() if torch.is_tensor(each) and each.dim() > 0]
    assert sum(each.numel() for each in moments) == 2 * len(ROWS) * WIDTH
    sft.sync(model)
    weight = sft.nn.stored(model.embed, "weight")
    assert sft.nn.stored(model.head, "weight") is weight
    torch.testing.assert_close(weight, dense.embed.weight.detach(), rtol=0, atol=1e-12)
    assert torch.equal(weight[others], before[others]) and not torch.equal(weight, before)


def test_everything_that_moves_a_model():
    """Copies, pickles, casts, checkpoints: still one tensor, and the same losses."""
    model = converted(Tied(scaled=True), origin=True)
    optimizer = ours([model.embed.values])
    loss_of(model).backward()
    optimizer.step()
    want = loss_of(model)
    fresh = converted(Tied(scaled=True), origin=True)
    fresh.load_state_dict(model.state_dict())
    plain = Tied(scaled=True)
    plain.load_state_dict(sft.state_dict(model))
    loaded = Tied(scaled=True)
    sft.load(loaded, model.state_dict())
    moved = pickle.loads(pickle.dumps(model)).double().float()
    for other in (copy.deepcopy(model), moved, fresh, plain, loaded):
        assert torch.equal(loss_of(other), want)
        first = sft.nn.stored(other.embed, "weight")
        assert first is sft.nn.stored(other.head, "weight")
        assert first is sft.nn.stored(other.again, "weight")
        assert not any(
            "head.values" in name or "again.values" in name for name in other.state_dict()
        )
        if other is not plain:
            loss_of(other).backward()
            other_grad = other.embed.values.grad
            model.zero_grad()
            loss_of(model).backward()
            assert torch.equal(other_grad, model.embed.values.grad)
            sft.restore(other, 0.0)
            assert torch.equal(loss_of(other), loss_of(Tied(scaled=True)))
    assert torch.equal(loss_of(model), want)


@pytest.mark.parametrize("scaled", [False, True])
def test_reverted_it_is_what_it_was(scaled):
    model = converted(Tied(scaled=scaled))
    optimizer = ours([model.embed.values])
    loss_of(model).backward()
    optimizer.step()
    want = loss_of(model).item()
    sft.revert(model)
    plain = Tied(scaled=scaled)
    assert [(n, type(m)) for n, m in model.named_modules()] == [
        (n, type(m)) for n, m in plain.named_modules()
    ]
    for module in model.modules():
        assert type(module._parameters) is dict
        assert not any(name.startswith("_sparse_ft") for name in vars(module))
    assert model.head.weight is model.embed.weight and model.head.weight.requires_grad
    assert loss_of(model).item() == want


def test_an_interrupted_convert_leaves_it_as_it_was(monkeypatch):
    from sparse_ft import places

    tie, calls = places.tie, []

    def interrupted(*args, **kwargs):
        tie(*args, **kwargs)
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(places, "tie", interrupted)
    model = Tied(scaled=True)
    with pytest.raises(KeyboardInterrupt):
        converted(model)
    assert type(model.embed) is nn.Embedding and type(model.head) is nn.Linear
    assert type(model.again._parameters) is dict and model.again.weight is model.embed.weight
    assert all(p.requires_grad for p in model.parameters())


def test_checkpointed_compiled_and_under_autocast():
    dense = Tied()
    for run in (
        lambda model: checkpoint(model, TOKENS, use_reentrant=False),
        lambda model: torch.compile(model, backend="aot_eager", fullgraph=True)(TOKENS),
    ):
        model = converted(copy.deepcopy(dense))
        run(model).square().sum().backward()
        twin = copy.deepcopy(dense)
        twin(TOKENS).square().sum().backward()
        torch.testing.assert_close(model.embed.values.grad, twin.embed.weight.grad[ROWS])
    model, twin = converted(copy.deepcopy(dense)), copy.deepcopy(dense)
    for each in (model, twin):
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            each(TOKENS).float().square().sum().backward()
    got, want = model.embed.values.grad, twin.embed.weight.grad[ROWS]
    assert (got - want).abs().max() <= 0.02 * want.abs().max()


def test_tied_again_it_is_the_same_and_untied_it_is_named():
    model = converted(Tied())
    weight = sft.nn.stored(model.embed, "weight")
    model.head.weight = model.embed.weight  # as transformers' tie_weights does
    assert sft.nn.stored(model.head, "weight") is weight
    loss_of(model).backward()
    model.head.weight = nn.Parameter(torch.zeros(VOCABULARY, WIDTH))
    with pytest.raises(RuntimeError, match="head.weight: it was tied to 'embed.weight'"):
        model(TOKENS)
    sft.revert(model)
    assert torch.equal(model.head.weight, torch.zeros(VOCABULARY, WIDTH))


def test_the_weight_of_a_reader_stays_frozen():
    model = converted(Tied())
    model.head.requires_grad_(True)
    assert not sft.nn.stored(model.embed, "weight").requires_grad and model.head.bias.requires_grad
    read = model.head.weight
    read.sum().backward()
    assert torch.equal(model.embed.values.grad, torch.ones(len(ROWS), WIDTH))


def test_the_report_names_them():
    model = Tied(scaled=True)
    report = sft.convert(model, {"head.weight": sft.Rows(ROWS)})
    (row,) = [row for row in report.rows if row.trainable]
    assert row.trainable == len(ROWS) * WIDTH
    assert row.how == "SelectiveEmbedding, tied: again.weight, head.weight"
    assert isinstance(model.embed, SelectiveEmbedding) and type(model.head) is TiedLinear
    assert "tied to head.weight" in repr(model.head)


@pytest.mark.parametrize("selection", [sft.Columns([1]), sft.Entries([3]), sft.Blocks([[0, 0]], 2)])
def test_other_selections_of_it_are_refused_by_name(selection):
    model = Tied()
    with pytest.raises(ValueError, match="'embed.weight' is one parameter with head.weight .tied."):
        sft.convert(model, {"embed.weight": selection})
    assert type(model.head) is nn.Linear and model.head.weight is model.embed.weight


def test_two_parameters_over_one_memory_are_refused():
    model = Tied()
    model.head.weight = nn.Parameter(model.embed.weight.data)
    with pytest.raises(ValueError, match="tied"):
        converted(model)
    model = Tied()
    model.embed.max_norm = 1.0
    with pytest.raises(ValueError, match="max_norm=1.0 is not supported"):
        converted(model)


# Language models: resize, then train the new rows only.

TRANSFORMERS = pytest.importorskip("transformers")


def language_model(kind):
    torch.manual_seed(0)
    common = {"vocab_size": 40, "tie_word_embeddings": True}
    if kind == "GPT-2":
        config = TRANSFORMERS.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=32, attn_pdrop=0, resid_pdrop=0,
            embd_pdrop=0, bos_token_id=0, eos_token_id=1, **common,
        )  # fmt: skip
        return TRANSFORMERS.GPT2LMHeadModel(config)
    config = TRANSFORMERS.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, bos_token_id=0, eos_token_id=1, **common,
    )  # fmt: skip
    return TRANSFORMERS.LlamaForCausalLM(config)


def batch():
    drawn = torch.Generator(torch.get_default_device()).manual_seed(1)
    ids = torch.randint(0, 48, (4, 12), generator=drawn)
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("kind", ["GPT-2", "Llama"])
@pytest.mark.parametrize("lean", ["", "before", "after"])
def test_after_a_resize_the_new_rows_train_alone(kind, lean, tmp_path):
    model = language_model(kind)
    model.resize_token_embeddings(48, mean_resizing=False)
    dense = copy.deepcopy(model).train()
    plan = sft.Plan.match(model, {"*lm_head.weight[40:]": "all"})
    assert [len(each) for each in plan.values()] == [8]
    if lean == "before":
        sft.lean(model, loss=True)
    sft.convert(model.train(), plan)
    if lean:
        report = sft.lean(model, loss=True)
        assert "lm_head" in report.changed
    assert type(model.lm_head) is TiedLinear
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    embedding = model.get_input_embeddings()
    optimizer = ours([p for p in model.parameters() if p.requires_grad])
    masked = torch.optim.AdamW([dense.get_input_embeddings().weight], lr=0.05, weight_decay=0.01)
    start = dense.get_input_embeddings().weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        dense.zero_grad()
        want = dense(**batch()).loss
        want.backward()
        dense.get_input_embeddings().weight.grad[:40] = 0
        masked.step()
        with torch.no_grad():
            dense.get_input_embeddings().weight[:40] = start[:40]
        assert abs(loss.item() - want.item()) < 2e-5
    weight = sft.nn.stored(embedding, "weight")
    assert sft.nn.stored(model.lm_head, "weight") is weight
    torch.testing.assert_close(
        weight, dense.get_input_embeddings().weight.detach(), atol=2e-4, rtol=0
    )
    assert torch.equal(weight[:40], start[:40]) and not torch.equal(weight[40:], start[40:])
    for name, p in model.named_parameters():
        if p is not weight and p is not embedding.values:
            assert torch.equal(p, before[name])
    (state,) = optimizer.state.values()
    assert state["exp_avg"].numel() == state["exp_avg_sq"].numel() == 8 * 16
    model.eval()
    logits = model(batch()["input_ids"]).logits
    model.save_pretrained(tmp_path, state_dict=sft.state_dict(model))
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    got = loaded(batch()["input_ids"]).logits
    assert torch.equal(got, logits) or (lean and torch.allclose(got, logits, atol=1e-5))
    model.tie_weights()
    assert torch.equal(model(batch()["input_ids"]).logits, logits)


@pytest.mark.parametrize("kind", ["GPT-2", "Llama"])
def test_resized_after_convert_the_rows_train_on(kind):
    model = language_model(kind)
    sft.convert(model, sft.Plan.match(model, {"*lm_head.weight[:8]": "all"}))
    with pytest.warns(UserWarning, match="its weight was resized"):
        model.resize_token_embeddings(48, mean_resizing=False)
        logits = model(batch()["input_ids"]).logits
    assert logits.shape[-1] == 48
    logits.square().sum().backward()
    grad = model.get_input_embeddings().values.grad
    sft.revert(model)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.requires_grad_(True)(batch()["input_ids"]).logits.square().sum().backward()
    torch.testing.assert_close(grad, model.lm_head.weight.grad[:8])


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_head_whose_forward_was_wrapped_goes_on_reading(wrapped):
    dense = Tied().double()
    model = copy.deepcopy(dense)
    if wrapped:
        own = model.head.forward
        model.head.forward = lambda input: own(input) + 0
    converted(model)
    assert (type(model.head) is nn.Linear) == wrapped
    loss_of(model).backward()
    loss_of(dense).backward()
    torch.testing.assert_close(model.embed.values.grad, dense.embed.weight.grad[ROWS])
    model.head.__dict__.pop("forward", None)
    sft.revert(model)
    assert model.head.weight is model.embed.weight


def test_estimated():
    model = Tied()
    told = sft.estimate(model, {"head.weight": sft.Rows(ROWS)}, inputs={"tokens": TOKENS})
    assert told.values == told.gradients == len(ROWS) * WIDTH * 4
    assert told.weights == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("rows", [[0, 3, 5], [2, 7]], ids=["as many", "fewer"])
def test_other_rows_train_after_a_reselection(rows):
    model = converted(Tied().double(), origin=True)
    before = copy.deepcopy(sft.state_dict(model))
    optimizer = ours([model.embed.values])
    loss_of(model).backward()
    optimizer.step()
    sft.reselect(model, optimizer, {"embed.weight": sft.Rows(rows)})
    dense = Tied().double()
    dense.load_state_dict(sft.state_dict(model))
    loss_of(model).backward()
    loss_of(dense).backward()
    torch.testing.assert_close(model.embed.values.grad, dense.embed.weight.grad[rows])
    optimizer.step()
    assert len(list(model.parameters())) == len(list(dense.parameters())) + 1
    assert sft.nn.stored(model.head, "weight") is sft.nn.stored(model.embed, "weight")
    sft.restore(model)
    assert all(torch.equal(tensor, before[n]) for n, tensor in sft.state_dict(model).items())
