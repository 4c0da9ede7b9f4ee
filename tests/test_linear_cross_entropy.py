"""linear_cross_entropy against F.cross_entropy of whole logits."""

import pytest
import torch
import torch.nn.functional as F

import sparse_ft as sft
from sparse_ft.functional import linear_cross_entropy
from sparse_ft.token_losses import chunks as room

pytestmark = pytest.mark.usefixtures("made_on_device")

CLASSES, FEATURES = 50, 24


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, the last one ragged."""
    monkeypatch.setattr(room, "CHUNK_BYTES", 4 * CLASSES * 16)


def problem(dtype=torch.float64, ignored=11):
    hidden = torch.randn(3, 19, FEATURES, dtype=dtype, requires_grad=True)
    weight = torch.randn(CLASSES, FEATURES, dtype=dtype, requires_grad=True)
    bias = torch.randn(CLASSES, dtype=dtype, requires_grad=True)
    target = torch.randint(0, CLASSES, (3, 19))
    target.view(-1)[torch.randperm(57)[:ignored]] = -100
    return hidden, weight, bias, target


def dense(hidden, weight, bias, target, reduction="mean"):
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(
        logits.to(torch.promote_types(torch.float32, logits.dtype)).flatten(0, 1),
        target.flatten(),
        reduction=reduction,
    )


def error(a, b):
    return ((a.double() - b.double()).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignored", [0, 11])
def test_value_and_gradients(reduction, ignored):
    *inputs, target = problem(ignored=ignored)
    want = dense(*inputs, target, reduction)
    got = linear_cross_entropy(inputs[0], inputs[1], target, inputs[2], reduction=reduction)
    assert error(got, want) < 1e-14
    for a, b in zip(torch.autograd.grad(3 * got, inputs), torch.autograd.grad(3 * want, inputs)):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_further_from_double_than_twice_torch(dtype):
    *inputs, target = problem(dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    truth = torch.autograd.grad(dense(*exact, target), exact)
    theirs = torch.autograd.grad(dense(*inputs, target), inputs)
    ours = torch.autograd.grad(
        linear_cross_entropy(inputs[0], inputs[1], target, inputs[2]), inputs
    )
    for a, b, c in zip(ours, theirs, truth):
        assert a.dtype == dtype
        assert error(a, c) <= 2 * error(b, c) + 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    "selection",
    [
        sft.Columns(torch.tensor([1, 5])),
        sft.Rows(torch.tensor([0, 49])),
        sft.Entries(torch.arange(0, 1200, 7)),
    ],
)
def test_selected_entries_of_the_head(selection):
    hidden, weight, _, target = problem()
    frozen = weight.detach()
    values = selection.gather(frozen).requires_grad_()
    loss = linear_cross_entropy(hidden, frozen, target, values=values, selection=selection)
    (want,) = torch.autograd.grad(dense(hidden, weight, None, target), [weight])
    assert error(torch.autograd.grad(loss, [values])[0], selection.gather(want)) < 1e-12


def test_keeps_one_gradient_of_the_tokens_that_count(device):
    hidden, weight, bias, target = problem(ignored=40)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        linear_cross_entropy(hidden, weight.detach(), target, bias.detach())
    kept = 17 if device.type == "cpu" else 57  # a GPU is not asked how many count
    assert max(saved) <= kept * FEATURES


def test_all_ignored_is_nan_for_the_mean_and_zero_for_the_sum():
    hidden, weight, bias, target = problem(ignored=57)
    assert linear_cross_entropy(hidden, weight, target, bias).isnan()
    total = linear_cross_entropy(hidden, weight, target, bias, reduction="sum")
    total.backward()
    assert total.item() == 0 and not hidden.grad.any()


def no_tokens():
    hidden, weight, bias, target = problem()
    return hidden.detach()[:0].requires_grad_(), weight, bias, target[:0]


@pytest.mark.parametrize(
    "problem", [lambda: problem(ignored=57), no_tokens], ids=["all ignored", "T = 0"]
)
@pytest.mark.parametrize("divisor", [None, 3, torch.tensor(0), torch.tensor(3)], ids=str)
def test_where_no_token_counts_gradients_are_zero_as_in_torch(problem, divisor):
    *inputs, target = problem()
    want = dense(*inputs, target) if divisor is None else dense(*inputs, target, "sum") / divisor
    got = linear_cross_entropy(inputs[0], inputs[1], target, inputs[2], divisor=divisor)
    assert torch.equal(got.isnan(), want.isnan()) and (want.isnan() or got == want)
    for a, b in zip(
        torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs), strict=True
    ):
        assert a.shape == b.shape and torch.equal(a, b) and not a.any()


@pytest.mark.parametrize(
    "selection",
    [sft.Columns([1, 5]), sft.Rows([0, 49]), sft.Entries([3, 7]), sft.Blocks([[0, 1]], (2, 3))],
)
def test_where_no_token_counts_selected_entries_get_zeros(selection):
    hidden, weight, _, target = problem(ignored=57)
    values = selection.gather(weight.detach()).requires_grad_()
    linear_cross_entropy(
        hidden, weight.detach(), target, values=values, selection=selection
    ).backward()
    assert not values.grad.any() and not hidden.grad.any()


def test_a_divisor_of_zero_where_tokens_count_is_torchs(device):
    *inputs, target = problem(ignored=11)
    want = dense(*inputs, target, "sum") / torch.tensor(0)
    got = linear_cross_entropy(inputs[0], inputs[1], target, inputs[2], divisor=torch.tensor(0))
    assert got == want == float("inf")
    a, b = (torch.autograd.grad(loss, inputs[0])[0] for loss in (got, want))
    assert not a[target != -100].isfinite().any()
    # A GPU scales what it masked, too: 0 · ∞.
    assert device.type != "cpu" or torch.equal(a[target == -100], b[target == -100])


def test_gradcheck():
    hidden, weight, bias, target = problem()
    torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, target[:, :4], b),
        (hidden.detach()[:, :4].requires_grad_(), weight, bias),
    )


def test_under_autocast_as_the_dense_loss(device):
    *inputs, target = problem(torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        want, got = (
            dense(*inputs, target),
            linear_cross_entropy(inputs[0], inputs[1], target, inputs[2]),
        )
    assert got.dtype == torch.float32 and abs(got - want) < 1e-2
    for a, b in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs)):
        assert a.dtype == torch.float32 and error(a, b) < 3e-2


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(reduction="max"), ValueError, "reduction.*'max'"),
        (dict(target=torch.zeros(3, 18, dtype=torch.long)), ValueError, r"target.*\(3, 18\)"),
        (dict(target=torch.full((3, 19), 50)), ValueError, "target.*50"),
        (dict(target=torch.zeros(3, 19)), TypeError, "target.*float32"),
        (dict(weight=torch.zeros(50, 23)), ValueError, r"weight.*\(50, 23\)"),
        (dict(values=torch.zeros(1)), ValueError, "selection"),
    ],
)
def test_refusals(change, error, says, device):
    if says == "target.*50" and device.type != "cpu":
        pytest.skip("a target out of range ends the process's use of the GPU, as torch's loss does")
    hidden, weight, bias, target = problem()
    with pytest.raises(error, match=says):
        linear_cross_entropy(
            **{"hidden": hidden, "weight": weight, "target": target, "bias": bias, **change}
        )


def test_the_mean_is_not_rounded_to_16_bits():
    """1 / 37 in bf16 would make every gradient 0.17 % too short."""
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(37, 64), torch.randn(50, 64), torch.randint(50, (37,))
    grads = []
    for loss in ("sum", "mean"):
        state = hidden.bfloat16().requires_grad_()
        linear_cross_entropy(state, weight.bfloat16(), target, reduction=loss).backward()
        grads.append(state.grad.double())
    ratio = (grads[0] * grads[1]).sum() / grads[0].square().sum() * 37
    assert abs(ratio - 1) < 5e-4
