"""apply and remove: exact for any number of times, refused on another base, and nothing is half
done.
"""

import copy
import pickle

import pytest
import torch
from helpers import small_deltas
from helpers.small_deltas import PLAN, bits, net, same_bits, trained

import sparse_ft as sft
from sparse_ft import ops


def parts_of(model, *names):
    """A delta of a few of the tensors that trained in `model`."""
    delta = sft.Delta.of(model)
    chosen = {name: delta[name] for name in names}
    return sft.Delta(chosen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_thousand_times_in_and_out(dtype):
    model = trained(dtype=dtype)
    delta, base = sft.Delta.of(model), net(dtype)
    before, after = bits(base), bits(small_deltas.reverted(model))
    for number in range(1000):
        sft.apply(base, delta)
        if number % 100 == 0:
            assert same_bits(base, after)
        sft.remove(base)
    assert same_bits(base, before)
    assert same_bits(sft.apply(base, delta), after)


def test_another_base_at_the_address_of_the_first_is_no_base():
    """An allocator gives out anew what was freed, also of a parameter that was replaced."""
    base, delta = net(), sft.Delta.of(trained())
    layer = base.layers[0]
    numbers = layer.weight.detach().numpy().copy()

    def lying_there():
        return torch.nn.Parameter(
            torch.frombuffer(numbers, dtype=torch.float32).view(numbers.shape)
        )

    layer.weight = lying_there()
    for _ in range(2):
        sft.remove(sft.apply(base, delta))
    version, address = layer.weight._version, layer.weight.data_ptr()
    layer.weight = None
    numbers += 1
    layer.weight = lying_there()
    assert layer.weight.data_ptr() == address
    while layer.weight._version < version:
        torch.autograd.graph.increment_version(layer.weight)
    with pytest.raises(ValueError, match="base"):
        sft.apply(base, delta)


def test_it_computes_what_the_fine_tuned_model_does():
    model, tokens = trained().eval(), torch.arange(12).view(2, 6)
    base = sft.apply(net(), sft.Delta.of(model)).eval()
    assert torch.equal(base(tokens), small_deltas.reverted(model)(tokens))


def test_not_a_number_and_negative_zero_survive():
    base, delta = net(), parts_of(trained(), "layers.3.weight", "layers.0.weight")
    odd = torch.tensor([0x7FA00001, -0x80000000, 0x7F800000, 1], dtype=torch.int32)
    delta["layers.3.weight"].values.copy_(odd.view(torch.float32))
    base.layers[0].weight.data.view(torch.int32)[2] = 0x7FA00003 - (0 << 32)
    before = bits(base)
    sft.apply(base, delta)
    assert torch.equal(base.layers[3].weight.view(-1)[[0, 1, 50, 143]].view(torch.int32), odd)
    sft.remove(base)
    assert same_bits(base, before)


def test_another_base_is_refused_and_forced(tmp_path):
    delta = sft.Delta.of(trained(), base_name="the net")
    for change in (
        lambda model: model.layers[3].weight.data.view(-1)[1:3].add_(1),  # beside what trained
        lambda model: model.norm.bias.data[0].add_(1),  # of a tensor that the delta leaves alone
        lambda model: model.register_parameter("more", torch.nn.Parameter(torch.zeros(1))),
    ):
        other = net()
        change(other)
        before = bits(other)
        with pytest.raises(ValueError, match="model: it is not the base .*'the net'.*force=True"):
            sft.apply(other, delta)
        assert same_bits(other, before)
        sft.apply(other, delta, force=True)
        assert torch.equal(other.head.weight, delta["head.weight"].values)
        assert same_bits(sft.remove(other), before)


@pytest.mark.parametrize(
    "name, message",
    [("layers.3.weight", "'layers.3.weight' has other"), ("norm.bias", "leaves alone has other")],
)
def test_a_base_that_was_changed_after_it_was_looked_at_is_refused(name, message):
    """By an optimiser, say, before the delta goes in again or while it is in."""
    base, delta = net(), sft.Delta.of(trained())
    for _ in range(3):
        sft.remove(sft.apply(base, delta))
    with torch.no_grad():
        base.get_parameter(name).view(-1)[-2] += 1
    with pytest.raises(ValueError, match=message):
        sft.apply(base, delta)
    other = net()
    sft.apply(other, delta)
    with torch.no_grad():
        other.get_parameter(name).view(-1)[-2] += 1
    sft.remove(other)
    with pytest.raises(ValueError, match=message):
        sft.apply(other, delta)


def test_another_architecture_or_dtype_is_refused_by_name():
    delta = sft.Delta.of(trained())
    with pytest.raises(ValueError, match="'embed.weight' is torch.bfloat16.*torch.float32"):
        sft.apply(net(torch.bfloat16), delta)
    narrow = net()
    narrow.head = torch.nn.Linear(12, 3)
    with pytest.raises(ValueError, match=r"'head.weight' has shape \(3, 12\).*\(5, 12\)"):
        sft.apply(narrow, delta, force=True)
    gone = net()
    gone.head = torch.nn.Identity()
    with pytest.raises(KeyError, match="delta: the model has no tensor 'head.weight'"):
        sft.apply(gone, delta, force=True)
    with pytest.raises(TypeError, match="delta: expected a Delta .*got dict"):
        sft.apply(net(), {})


def test_a_16_bit_base_takes_it_by_force_rounded_and_gives_it_back():
    base = net(torch.bfloat16)
    before, delta = bits(base), sft.Delta.of(trained())
    sft.apply(base, delta, force=True)
    assert torch.equal(base.head.weight, delta["head.weight"].values.bfloat16())
    assert same_bits(sft.remove(base), before)


def test_alpha_goes_from_the_base_to_the_fine_tuned_model():
    model = trained()
    delta, start, end = sft.Delta.of(model), bits(net()), bits(small_deltas.reverted(model))
    floats = {
        name: tensor for name, tensor in sft.state_dict(net()).items() if tensor.is_floating_point()
    }
    at = {alpha: sft.apply(net(), delta, alpha=alpha) for alpha in (0.0, 0.25, 1.0, 1.5)}
    here = {alpha: sft.state_dict(each) for alpha, each in at.items()}
    assert same_bits(at[1.0], end)
    assert all(torch.equal(bits(at[0.0])[name], start[name]) for name in floats)
    for name in floats:
        for alpha in (0.25, 1.5):
            wanted = here[0.0][name] + alpha * (here[1.0][name] - here[0.0][name])
            torch.testing.assert_close(here[alpha][name], wanted)
    for each in at.values():
        assert same_bits(sft.remove(each), start)


@pytest.mark.parametrize("values", [(-0.0, 1.0), (1.0, torch.inf), (2.0, -0.0)])
def test_alpha_is_exact_at_both_ends_for_odd_numbers_too(values):
    base, after = net(), net()
    base.layers[3].weight.data[0, 0], after.layers[3].weight.data[0, 0] = values
    delta = sft.diff(base, after)
    wise = sft.deltas.wise_ft
    assert same_bits(sft.apply(copy.deepcopy(base), delta, alpha=0.0), base)
    assert same_bits(sft.apply(copy.deepcopy(base), wise(delta, 0.0)), base)
    assert same_bits(sft.apply(copy.deepcopy(base), wise(delta, 1.0)), after)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "0.5", None])
def test_an_alpha_that_is_no_finite_number_is_refused(alpha):
    model = net()
    with pytest.raises(ValueError, match="alpha: expected a finite number, got"):
        sft.apply(model, sft.Delta.of(trained()), alpha=alpha)
    assert same_bits(model, net())


def test_alpha_through_origin_needs_no_base():
    """By force on a model that holds something else there."""
    delta = sft.diff(net(), small_deltas.reverted(trained()))
    other = sft.apply(net(seed=5), delta, alpha=0.5, force=True)
    old, new = (sft.state_dict(each)["head.weight"] for each in (net(), trained()))
    torch.testing.assert_close(other.head.weight.data, torch.lerp(old, new, 0.5))


def test_deltas_of_other_entries_go_in_and_out_in_any_order():
    model = trained()
    a = parts_of(model, "layers.0.weight", "head.weight")
    b = parts_of(model, "layers.3.weight", "layers.2.weight")
    base = net()
    before = bits(base)
    sft.apply(sft.apply(base, a), b)
    sft.remove(base, a)
    assert same_bits(base, sft.apply(net(), b))
    sft.remove(base, b)
    assert same_bits(base, before)


def test_a_second_delta_is_looked_at_as_on_the_base():
    first = sft.Delta.of(trained({"layers.0.weight": sft.Rows([1])}))
    second = sft.Delta.of(trained({"layers.1.weight": sft.Rows([1])}, steps=5))
    parts = {name: part for name, part in second.items() if "batch_norm" not in name}
    second = sft.Delta(parts, second.rest)
    base = sft.apply(sft.apply(net(), first), second)
    assert torch.equal(base.layers[0].weight[1], first["layers.0.weight"].values[0])
    assert torch.equal(base.layers[1].weight[1], second["layers.1.weight"].values[0])


def test_a_delta_that_was_trained_on_top_of_another():
    first = sft.Delta.of(trained({"layers.0.weight": sft.Rows([1])}))
    model = sft.apply(net(), first)
    sft.convert(model, {"layers.0.weight": sft.Rows([2]), "layers.1.weight": sft.Rows([0])})
    with torch.no_grad():
        model.layers[0].values += 1
        model.layers[1].values += 1
    second = sft.Delta.of(model)
    with pytest.raises(ValueError, match="model: it is not the base"):
        sft.apply(net(), second)
    base = sft.apply(sft.apply(net(), first), second)
    assert same_bits(base, small_deltas.reverted(model))
    assert same_bits(sft.remove(sft.remove(base)), net())


def test_what_a_later_delta_changed_comes_out_last():
    first = parts_of(trained(), "layers.0.weight", "layers.2.weight")
    second = parts_of(trained(steps=6), "layers.2.weight")
    base = net()
    before = bits(base)
    sft.apply(sft.apply(base, first), second, force=True)
    with pytest.raises(ValueError, match="delta: .*later has changed 'layers.2.weight' too"):
        sft.remove(base, first)
    assert same_bits(sft.remove(sft.remove(base)), before)


def test_for_good():
    model = trained()
    base = sft.apply(net(), sft.Delta.of(model), undo=False)
    assert same_bits(base, small_deltas.reverted(model))
    with pytest.raises(ValueError, match="delta: no delta is in this model"):
        sft.remove(base)


def test_converted_models_and_second_times_are_refused():
    delta, model = sft.Delta.of(trained()), trained()
    for call in (lambda: sft.apply(model, delta), lambda: sft.remove(model)):
        with pytest.raises(ValueError, match="model: it is converted.*sft.revert"):
            call()
    base = sft.apply(net(), delta)
    with pytest.raises(ValueError, match="delta: it is in this model already"):
        sft.apply(base, delta)
    with pytest.raises(ValueError, match="delta: it is not in this model"):
        sft.remove(base, sft.Delta.of(trained()))


def test_training_goes_on_from_a_delta():
    delta = sft.Delta.of(trained())
    model = sft.apply(net(), delta)
    plan = {name: what for name, what in delta.plan.items() if name in PLAN}
    sft.convert(model, plan)
    assert torch.equal(model.layers[3].values.detach(), delta["layers.3.weight"].values)


def test_a_copy_and_a_pickle_of_a_model_take_their_deltas_out():
    delta = sft.Delta.of(trained())
    base = sft.apply(net(), delta)
    for twin in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert same_bits(sft.remove(twin), net())
    assert same_bits(base, sft.apply(net(), delta))


def test_a_cast_between_in_and_out():
    base = sft.apply(net(), sft.Delta.of(trained()))
    assert same_bits(sft.remove(base.bfloat16()), net().bfloat16())


@pytest.mark.parametrize("number", range(7))
def test_an_error_in_the_middle_leaves_the_model_as_it_was(monkeypatch, number):
    """A kernel that fails, before or after it wrote."""
    base, delta = net(), sft.Delta.of(trained())
    before, swap, calls = bits(base), ops.swap_selected_, []

    def fails(*arguments):
        calls.append(1)
        if len(calls) == number + 1:
            if number % 2:
                swap(*arguments)
            raise MemoryError("no more")
        swap(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ops, "swap_selected_", fails)
        with pytest.raises(MemoryError):
            sft.apply(base, delta)
    assert same_bits(base, before)
    sft.apply(base, delta)
    after = bits(base)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ops, "swap_selected_", fails)
        with pytest.raises(MemoryError):
            sft.remove(base)
    assert same_bits(base, after)
    assert same_bits(sft.remove(base), before)


def test_tied_weights_are_one_tensor():
    """Of a head that is the embedding: one part, under the first name, and exact both ways."""

    def tied():
        model = net()
        model.out = torch.nn.Linear(12, 20, bias=False)
        model.out.weight = model.embed.weight
        return model

    changed = tied()
    changed.embed.weight.data[3] += 1
    delta = sft.diff(tied(), changed)
    assert list(delta) == ["embed.weight"]
    model = sft.apply(tied(), delta)
    assert same_bits(model, changed) and model.out.weight is model.embed.weight
    assert same_bits(sft.remove(model), tied())
    twice = sft.Delta({"embed.weight": delta["embed.weight"], "out.weight": delta["embed.weight"]})
    assert same_bits(sft.remove(sft.apply(tied(), twice, force=True)), tied())
