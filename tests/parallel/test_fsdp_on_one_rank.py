"""What FSDP2 and selections do not do together is refused by name; and what one rank is enough for
beside that.
"""

import pytest
import torch
from helpers import sharded_net
from helpers.sharded_net import PLAN, SELECTED, Case
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

import sparse_ft as sft

pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
TOKENS, _ = sharded_net.batches(1)[0]
OUTSIDE = "embed.weight: its values are outside of fully_shard"


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    store = distributed.FileStore(str(tmp_path_factory.mktemp("fsdp") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(alone):
    """A model that nothing here changes."""
    return sharded_net.shard(sharded_net.converted(Case(plan=SELECTED, convert=dict(origin=True))))


def values_in(model):
    return {p for name, p in model.named_parameters() if name.endswith("values")}


def test_values_that_are_ignored():
    model = sharded_net.converted(Case())
    sharded_net.shard(model, ignored_params=values_in(model))
    with pytest.raises(RuntimeError, match=OUTSIDE):
        model(TOKENS)
    with pytest.raises(RuntimeError, match=OUTSIDE):
        sft.SelectiveAdamW(model.parameters())


def test_values_that_are_ignored_with_their_weights():
    """Nothing of what trains is sharded; the first step tells, whoever takes it."""
    model = sharded_net.converted(Case(plan={"head.weight": PLAN["head.weight"]}))
    head = {model.head._parameters["values"], model.head._parameters["weight"]}
    sharded_net.shard(model, ignored_params=head)
    optimizer = torch.optim.SGD([model.head.values], lr=0.1)
    model(TOKENS).sum().backward()
    with pytest.raises(RuntimeError, match="head.weight: its values are outside of fully_shard"):
        optimizer.step()


def test_weights_that_are_ignored_without_their_values():
    model = sharded_net.converted(Case(plan={"head.weight": PLAN["head.weight"]}))
    sharded_net.shard(model, ignored_params={model.head._parameters["weight"]})
    with pytest.raises(RuntimeError, match="head.weight: its weight is outside of fully_shard"):
        sft.SelectiveAdamW(model.parameters())


def test_a_part_that_is_not_wrapped():
    model = sharded_net.converted(Case())
    for layer in model.layers:
        fully_shard(layer)
    with pytest.raises(RuntimeError, match=OUTSIDE):
        sft.SelectiveAdamW(model.parameters())
    other = sharded_net.converted(Case())  # the fault of one model is not another's
    sft.SelectiveAdamW(other.parameters())


def test_shards_along_another_dimension():
    model = sharded_net.converted(Case(plan={"head.weight": PLAN["head.weight"]}))
    sharded_net.shard(model, shard_placement_fn=lambda p: Shard(1) if p.dim() > 1 else None)
    with pytest.raises(ValueError, match="head.weight: its weight is placed as .*Shard.dim=1"):
        model(TOKENS)


def test_gradients_of_two_dtypes_in_one_group():
    model = sharded_net.shard(sharded_net.converted(Case(dtype=torch.bfloat16)))
    message = "'layers.0.norm.bias' in torch.bfloat16.* train in one group.* values_dtype"
    with pytest.raises(ValueError, match=message):
        sft.SelectiveAdamW(model.parameters())


@pytest.mark.parametrize("option", ["optim_bits", "in_backward"])
def test_options_of_the_optimiser(option, sharded):
    with pytest.raises(ValueError, match=f"{option}: embed.weight is split over the ranks"):
        sft.SelectiveAdamW(sharded.parameters(), **{option: 8 if option == "optim_bits" else True})


SPLIT = {
    "revert": lambda model, _: sft.revert(model),
    "restore": lambda model, _: sft.restore(model, 0.5),
    "reselect": lambda model, _: sft.reselect(model, torch.optim.SGD(model.parameters()), PLAN),
    "save_delta": lambda model, path: sft.save_delta(model, path),
    "disabled": lambda model, _: sft.disabled(model).__enter__(),
    "patches": lambda model, _: sft.patches(model),
    "diff": lambda model, _: sft.diff(sharded_net.net(), model),
    "select": lambda model, _: sft.select(model, density=0.5, score="magnitude"),
    "layer_scores": lambda model, _: sft.layer_scores.drift(model, sharded_net.net()),
}


@pytest.mark.parametrize("name", SPLIT)
def test_functions_that_take_a_whole_model(name, sharded, tmp_path):
    with pytest.raises(ValueError, match=r"model: it is split over the ranks by FSDP2.*; \w+"):
        SPLIT[name](sharded, tmp_path / "file")


def test_what_is_gathered_is_not_written(sharded):
    sharded.eval()
    with torch.no_grad():
        sharded(TOKENS)
    with pytest.raises(RuntimeError, match=r"embed.weight: FSDP2 shows a gathered copy.*reshard"):
        sft.sync(sharded)
    sharded.reshard()
    sft.sync(sharded)


@pytest.mark.parametrize("name", SELECTED)
def test_sync_writes_to_the_shards(name):
    """What was written where nothing tells of it."""
    model = sharded_net.shard(sharded_net.converted(Case(plan={name: SELECTED[name]})))
    shape = sft.matrix_shape(sharded_net.net(), name)
    (values,) = values_in(model)
    values.to_local().data.fill_(7.0)
    weight = dict(model.named_parameters())[name].full_tensor().view(shape)
    mask = SELECTED[name].mask(shape)
    assert not (weight == 7).any()
    sft.sync(model)
    assert torch.equal(weight == 7, mask)


def test_plain_weights_have_their_own_names(sharded):
    assert sft.state_dict(sharded).keys() == sharded_net.net().state_dict().keys()


class NormFirst(nn.Module):
    """The second linear layer reads what the norm can make again."""

    def __init__(self, norm):
        super().__init__()
        self.embed = nn.Embedding(sharded_net.TOKENS, sharded_net.WIDTH)
        self.first = nn.Linear(sharded_net.WIDTH, sharded_net.WIDTH)
        self.norm = norm(sharded_net.WIDTH)
        self.second = nn.Linear(sharded_net.WIDTH, sharded_net.CLASSES)

    def forward(self, tokens):
        return self.second(self.norm(self.first(self.embed(tokens)))).mean(1)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_lean_norm_in_a_group_of_its_own(norm):
    """Its weight is freed before the backward of the layer that reads its output."""
    losses = []
    for is_sharded in (False, True):
        torch.manual_seed(0)
        model = NormFirst(norm)
        plan = {"first.weight": sft.Rows([0, 3]), "second.weight": sft.Rows([1, 5])}
        sft.convert(model, plan, lean=True)
        if is_sharded:
            fully_shard(model.norm)
            fully_shard(model)
        optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
        losses.append(torch.stack(sharded_net.train(model, optimizer, Case())))
    assert torch.equal(*losses)


@pytest.mark.parametrize("optimizer", ["SelectiveAdamW", "AdamW"])
def test_what_a_backward_leaves_gathered_is_gathered_anew_after_a_step(optimizer):
    """`set_reshard_after_backward(False)`: the next forward would see what was before the step."""
    runs = {}
    for keeps in (False, True):
        model = sharded_net.shard(sharded_net.converted(Case(plan=SELECTED)))
        model.set_reshard_after_backward(not keeps)
        made = sharded_net.OPTIMIZERS[optimizer](model.parameters())
        runs[keeps] = sharded_net.train(model, made, Case(steps=3))
    assert runs[False] == runs[True]


def test_an_optimiser_that_was_made_before_is_told_of_once():
    model = sharded_net.converted(Case(plan=SELECTED))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    sharded_net.shard(model)
    told = "embed.weight, .* and 7 more: this optimiser holds values .* fully_shard has split it"
    with pytest.warns(UserWarning, match=told) as warned:
        sharded_net.train(model, optimizer, Case(steps=1))
    assert len([each for each in warned if "this optimiser" in str(each.message)]) == 1


def test_save_pretrained_asks_for_the_whole_state(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=16)
    config = transformers.LlamaConfig(num_hidden_layers=1, num_key_value_heads=2, **sizes)
    model = transformers.LlamaForCausalLM(config)
    born = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sft.convert(model, {"lm_head.weight": sft.Rows([1])})
    fully_shard(model)
    with pytest.raises(ValueError, match="split over the ranks by FSDP2.*pass state_dict=:"):
        model.save_pretrained(tmp_path)
    whole = StateDictOptions(full_state_dict=True)
    model.save_pretrained(tmp_path, state_dict=get_model_state_dict(model, options=whole))
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, born[name]), name
