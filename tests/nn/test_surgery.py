"""Whatever somebody does to a converted module: what does not train is named, revert works."""

import copy
import warnings

import pytest
import torch
from helpers.llama import VOCABULARY, batches, loss_of, tiny_llama
from helpers.small_linear import SELECTIONS
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import sparse_ft as sft

pytestmark = pytest.mark.usefixtures("made_on_device")

PRIVATE = "_sparse_ft"


def linear_and_convolution():
    """A layer that is replaced, of weight [7, 10], and one that is aliased."""
    torch.manual_seed(0)
    convolution = nn.Unflatten(1, (7, 1)), nn.Conv1d(7, 7, 1), nn.Flatten()
    return nn.Sequential(nn.Linear(10, 7), *convolution, nn.Linear(7, 2))


def converted(selection):
    model = linear_and_convolution()
    selection = copy.deepcopy(selection)  # some tests edit its index
    sft.convert(model, {"0.weight": selection, "2.weight": sft.Entries([0, 48])})
    with torch.no_grad():
        model[0].values.add_(1)
        model[2].weight_selected.values.add_(1)
    sft.sync(model)
    return model


def is_plain(model):
    for module in model.modules():
        ours = [name for name in module.__dict__ if name.startswith(PRIVATE)]
        hooked = module._forward_pre_hooks or module._forward_hooks
        if ours or hooked or isinstance(module, sft.nn.Selected):
            return False
    return all(parameter.requires_grad for parameter in model.parameters())


def stored(module):
    return dict.__getitem__(module._parameters, "weight")


def selected_of(module):
    return module if isinstance(module, sft.nn.SelectiveLinear) else module.weight_selected


def set_values(module, values):
    selected_of(module)._parameters["values"] = values


def edit_index(module):
    selected_of(module).selection.index.add_(1)


def lay_out_otherwise(module):
    weight = stored(module)
    weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)


def other_weight(shape):
    def act(module):
        module.weight = nn.Parameter(torch.zeros(shape))

    return act


SURGERY = {
    "smaller": lambda m: other_weight((2, *stored(m).shape[1:]))(m),
    "larger": lambda m: other_weight((99, 3, 5)[: stored(m).dim()])(m),
    "transposed": lambda m: other_weight(stored(m).transpose(0, 1).shape)(m),
    "other strides": lay_out_otherwise,
    "other dtype": lambda m: setattr(m, "weight", nn.Parameter(stored(m).detach().half())),
    "data": lambda m: setattr(stored(m), "data", torch.zeros(3, 3)),
    "none": lambda m: m._parameters.update(weight=None),
    "deleted": lambda m: m._parameters.pop("weight"),
    "meta": lambda m: setattr(m, "weight", nn.Parameter(stored(m).detach().to("meta"))),
    "values of another shape": lambda m: set_values(m, nn.Parameter(torch.zeros(3))),
    "values on meta": lambda m: set_values(m, nn.Parameter(torch.zeros(3, device="meta"))),
    "no values": lambda m: set_values(m, None),
    "index edited": edit_index,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("name", SURGERY)
def test_revert_always_works(name, place):
    for selection in SELECTIONS.values():
        model = converted(selection)
        for module in (copy.deepcopy(model), model):  # the copy has no part in what comes
            SURGERY[name](module[place])
            sft.revert(module)
            assert is_plain(module)
            assert type(module[0]) is nn.Linear and "values" not in module[0]._parameters


@pytest.mark.parametrize("place", [0, 2])
def test_what_has_no_place_any_more_is_named(place):
    model = converted(sft.Rows([0, 6]))
    SURGERY["data"](model[place])
    with pytest.raises(ValueError, match=rf"{place}.weight: .*\(3, 3\).*sft.revert"):
        model(torch.randn(2, 10))
    with pytest.warns(UserWarning, match=rf"{place}.weight: .*\(3, 3\).*leaves the weight as"):
        sft.revert(model)
    assert torch.equal(model[place].weight, torch.zeros(3, 3))


def test_trained_entries_are_written_back_whatever_the_strides():
    model = converted(sft.Columns([1, 3]))
    expected = sft.revert(copy.deepcopy(model))[0].weight
    with torch.no_grad():
        model[0].values.mul_(1)  # shows nothing new, but counts as a change
        SURGERY["other strides"](model[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sft.revert(model)
    assert torch.equal(model[0].weight, expected)


FORMS = {
    "prune": lambda module: prune.l1_unstructured(module, "weight", 0.3),
    "random prune": lambda module: prune.random_unstructured(module, "weight", 0.3),
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "parametrized orthogonal": parametrizations.orthogonal,
    "del": lambda module: delattr(module, "weight"),
    "plain tensor": lambda module: setattr(module, "weight", torch.zeros(7, 10)),
}


# torch's words where it would register what it reads, which is computed
COMPUTED = "Cannot assign non-leaf Tensor"


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("name", FORMS)
def test_a_replaced_layer_takes_no_other_form_and_says_so(name):
    model, x = converted(sft.Rows([0, 6])), torch.randn(2, 10)
    before, parameters = model(x), [n for n, _ in model.named_parameters()]
    with pytest.raises(
        (RuntimeError, TypeError, ValueError), match=f"0.weight: .*sft.revert|'weight'|{COMPUTED}"
    ):
        FORMS[name](model[0])
    assert torch.equal(model(x), before) and [n for n, _ in model.named_parameters()] == parameters
    assert not [n for n, _ in model.named_buffers()] and not hasattr(model[0], "parametrizations")
    sft.revert(model)
    assert is_plain(model) and torch.equal(model(x), before)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("name", [*FORMS][:7])
def test_an_aliased_parameter_takes_no_other_form_and_says_so(name):
    model, x = converted(sft.Rows([0, 6])), torch.randn(2, 10)
    before, parameters = model(x), [n for n, _ in model.named_parameters()]
    with pytest.raises((RuntimeError, ValueError), match=f"2.weight: .*sft.revert|{COMPUTED}"):
        FORMS[name](model[2])
    assert torch.equal(model(x), before) and [n for n, _ in model.named_parameters()] == parameters
    sft.revert(model)
    assert not [n for n, _ in model.named_modules() if n.endswith("_selected")]
    assert torch.equal(model(x), before)


def test_an_aliased_weight_that_was_taken_away_is_named_at_the_forward():
    model, x = converted(sft.Rows([0, 6])), torch.randn(2, 10)
    SURGERY["deleted"](model[2])
    with pytest.raises(ValueError, match="2.weight: its weight was taken away .*sft.revert"):
        model(x)
    with pytest.warns(UserWarning, match="2.weight: its weight was taken away"):
        sft.revert(model)


def test_a_parametrised_bias():
    class Double(nn.Module):
        def forward(self, bias):
            return 2 * bias

    model, x = converted(sft.Rows([0, 6])), torch.randn(2, 10)
    plain = sft.revert(copy.deepcopy(model))
    for each in (model, plain):
        parametrize.register_parametrization(each[0], "bias", Double())
    assert torch.equal(model(x), plain(x))
    sft.revert(model)
    assert isinstance(model[0], nn.Linear) and not isinstance(model[0], sft.nn.Selected)
    assert torch.equal(model(x), plain(x))
    parametrize.remove_parametrizations(model[0], "bias")
    assert type(model[0]) is nn.Linear and torch.equal(model(x), plain(x))


def test_other_parameters_may_be_added_and_deleted():
    model = converted(sft.Rows([0, 6]))
    model[0].register_parameter("scale", nn.Parameter(torch.ones(7)))
    del model[0].scale
    model[0].bias = None
    model(torch.randn(2, 10))
    sft.revert(model)


ROWS = sft.Rows([1, 2, VOCABULARY - 1])


def embedding_llama():
    model = tiny_llama()
    sft.convert(model, {"model.embed_tokens.weight": ROWS})
    return model


@pytest.mark.parametrize("no_grad", [False, True])
def test_a_resized_embedding_trains_on(no_grad):
    model = embedding_llama()
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=0.1)
    tokens = next(batches(1))
    loss_of(model, tokens).backward()
    optimizer.step()
    says = pytest.warns(UserWarning, match=r"embed_tokens.weight: .*\(40, 24\).*train on")
    with torch.set_grad_enabled(not no_grad), says:
        model.resize_token_embeddings(VOCABULARY + 8)
    embedding = model.model.embed_tokens
    assert embedding.values.requires_grad, "transformers gives the module the flag of its weight"
    assert not stored(embedding).requires_grad
    before = stored(embedding).detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model, tokens).backward()
            assert embedding.values.grad.any()
            optimizer.step()
        report = sft.summary(model)
        sft.revert(model)
    moved = (embedding.weight != before).any(1).nonzero().flatten().tolist()
    assert embedding.weight.shape == (VOCABULARY + 8, 24)
    assert moved and set(moved) <= set(ROWS.index.tolist())
    assert report.trainable == 3 * 24 and not report.lost


def test_a_layer_that_is_frozen_and_unfrozen():
    model = converted(sft.Rows([0, 6]))
    model[0].requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    model[0].requires_grad_()
    trainable = [name for name, parameter in model[0].named_parameters() if parameter.requires_grad]
    assert trainable == ["bias", "values"]


def test_freezing_a_resized_embedding_is_possible():
    model = embedding_llama()
    with pytest.warns(UserWarning, match="resized"):
        model.resize_token_embeddings(VOCABULARY + 8)
    model.model.embed_tokens.requires_grad_(False)  # may be meant for the weight: transformers
    model.model.embed_tokens.requires_grad_(False)
    assert not model.model.embed_tokens.values.requires_grad


def test_an_embedding_that_lost_a_selected_row():
    model = embedding_llama()
    with pytest.raises(ValueError, match=r"embed_tokens.weight: .*\(32, 24\).*\(24, 24\)"):
        model.resize_token_embeddings(VOCABULARY - 8)
    with pytest.warns(UserWarning, match="embed_tokens.weight: .*leaves the weight as it is"):
        sft.revert(model)
    assert type(model.model.embed_tokens) is nn.Embedding
    sft.convert(model, {"model.embed_tokens.weight": sft.Rows([1])})
    loss_of(model, next(batches(1)).clamp(max=VOCABULARY - 9)).backward()


@pytest.mark.parametrize(
    "selection, size, goes_on",
    [
        (sft.Rows([0, 3]), (9, 6), True),
        (sft.Rows([0, 3]), (4, 6), True),
        (sft.Rows([0, 3]), (3, 6), False),
        (sft.Rows([0, 3]), (5, 7), False),
        (sft.Columns([0, 3]), (5, 9), True),
        (sft.Columns([0, 3]), (9, 6), False),
        (sft.Entries([0, 17]), (9, 6), True),
        (sft.Entries([0, 17]), (5, 9), False),
        (sft.Blocks([[0, 1]], 2), (9, 9), True),
        (sft.Blocks([[2, 1]], 2), (9, 6), False),  # the padding of an edge block became rows
    ],
)
def test_which_selections_follow_a_weight_of_another_size(selection, size, goes_on):
    """The old size is (5, 6)."""
    linear = nn.Linear(6, 5, bias=False)
    module = sft.nn.SelectiveLinear.from_linear(linear, selection.on((5, 6)))
    old, new = stored(module).detach().clone(), torch.zeros(size)
    new[:5, :6] = old[: size[0], : size[1]]
    module.weight = nn.Parameter(new.clone(), requires_grad=False)
    x = torch.randn(2, size[1])
    if not goes_on:
        with pytest.raises(ValueError, match=r"Linear.weight: .*\(5, 6\)"):
            module(x)
        return
    with pytest.warns(UserWarning, match="Linear.weight: .*resized"):
        assert torch.equal(module(x), nn.functional.linear(x, new))
    module(x).sum().backward()
    dense = new.clone().requires_grad_()
    nn.functional.linear(x, dense).sum().backward()
    assert torch.allclose(module.values.grad, module.selection.gather(dense.grad))


HEAD_PLAN = {"lm_head.weight": sft.Rows([1]), "model.layers.0.mlp.up_proj.weight": sft.Rows([0])}


def resized_head(optimizer_first):
    model = tiny_llama()
    sft.convert(model, HEAD_PLAN)
    optimizer = sft.SelectiveAdamW(model.parameters()) if optimizer_first else None
    model.resize_token_embeddings(VOCABULARY + 8)  # puts a new nn.Linear in the place of the head
    return model, optimizer or sft.SelectiveAdamW(model.parameters())


@pytest.mark.parametrize("optimizer_first", [False, True])
def test_a_selection_that_left_with_its_module_is_named(optimizer_first):
    model, optimizer = resized_head(optimizer_first)
    loss_of(model, next(batches(1))).backward()
    with pytest.warns(UserWarning, match="lm_head.weight: its selection is lost.*sft.revert"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # said once
    report = sft.summary(model)
    assert report.lost == ("lm_head.weight",)
    assert "LOST: the selection of 'lm_head.weight'" in str(report)
    with pytest.raises(
        ValueError, match="model: lm_head.weight: its selection is lost.*sft.revert"
    ):
        sft.convert(model, HEAD_PLAN)
    sft.revert(model)
    assert all(p.requires_grad for p in model.parameters())
    assert not sft.convert(model, HEAD_PLAN).lost


def test_an_optimizer_that_has_stepped_before_names_the_values_that_it_holds_in_vain():
    model = converted(sft.Rows([0, 6]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(2, 10)).sum().backward()
        optimizer.step()
    model[0] = nn.Linear(10, 7)
    model(torch.randn(2, 10)).sum().backward()
    with pytest.warns(UserWarning, match="0.weight: this optimiser holds values that train no"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    sft.revert(model)


def test_an_aliased_parameter_whose_owner_left_its_reader():
    attention = nn.MultiheadAttention(8, 2)
    sft.convert(attention, {"out_proj.weight": sft.Rows([1])})
    attention.out_proj = nn.Linear(8, 8)
    assert sft.summary(attention).lost == ("out_proj.weight",)
    sft.revert(attention)
    assert is_plain(attention)
    attention(*[torch.randn(3, 2, 8)] * 3)


def test_another_models_optimizer_steps_beside_a_module_that_lost_its_weight():
    model = converted(sft.Rows([0, 6]))
    SURGERY["deleted"](model[0])
    SURGERY["deleted"](model[2])
    other = nn.Linear(2, 2)
    other(torch.randn(1, 2)).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    own = torch.optim.SGD([model[0].values], lr=0.1)
    model[0].values.grad = torch.ones_like(model[0].values)
    own.step()
