"""Losses of single tokens, weighted and compared, against the formulas on whole logits."""

import pytest
import torch
import torch.nn.functional as F
from helpers.largest import Largest

import sparse_ft as sft
from sparse_ft.functional import linear_cross_entropy, linear_kl_divergence
from sparse_ft.token_losses import chunks as room

CLASSES, FEATURES, BATCH, LENGTH = 50, 24, 3, 19


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, the last one ragged."""
    monkeypatch.setattr(room, "CHUNK_BYTES", 4 * CLASSES * 16)


class Problem:
    def __init__(self, dtype=torch.float64, ignored=11):
        self.hidden = torch.randn(BATCH, LENGTH, FEATURES, dtype=dtype, requires_grad=True)
        weight = torch.randn(CLASSES, FEATURES, dtype=dtype) / 3
        self.weight = weight.requires_grad_()
        self.bias = torch.randn(CLASSES, dtype=dtype, requires_grad=True)
        self.target = torch.randint(0, CLASSES, (BATCH, LENGTH))
        self.target.view(-1)[torch.randperm(BATCH * LENGTH)[:ignored]] = -100
        self.weights = torch.rand(BATCH, LENGTH, dtype=dtype)
        self.weights[0, :4] = 0

    @property
    def inputs(self):
        return [self.hidden, self.weight, self.bias]

    def double(self):
        twin = Problem()
        twin.hidden, twin.weight, twin.bias = (
            each.detach().double().requires_grad_() for each in self.inputs
        )
        twin.target, twin.weights = self.target, self.weights.double()
        return twin


def dense(problem, token_weights=None):
    """(losses, entropies) of whole logits, [B, T], each 0 where there is no target."""
    logits = F.linear(*problem.inputs)
    logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
    losses = F.cross_entropy(logits.transpose(1, 2), problem.target, reduction="none")
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1) * (problem.target != -100)
    if token_weights == "given":
        losses = losses * problem.weights
    elif token_weights == "probability":
        losses = losses * torch.exp(-losses.detach())
    elif token_weights == "entropy":
        losses = losses * torch.exp(-entropy.detach())
    return losses, entropy


WEIGHTS = {
    None: lambda problem: None,
    "given": lambda problem: problem.weights,
    "probability": lambda problem: lambda tokens: tokens.probability,
    "entropy": lambda problem: lambda tokens: torch.exp(-tokens.entropy),
}


def lean(problem, token_weights=None, reduction="none", **more):
    return linear_cross_entropy(
        problem.hidden,
        problem.weight,
        problem.target,
        problem.bias,
        token_weights=WEIGHTS[token_weights](problem),
        reduction=reduction,
        **more,
    )


def reduced(losses, problem, reduction):
    if reduction == "none":
        return losses
    return losses.sum() / (1 if reduction == "sum" else (problem.target != -100).sum())


def scalar(result):
    """A number that each token has another part in."""
    if result.dim() == 0:
        return result
    return (result * torch.linspace(-1, 2, result.numel()).view_as(result).to(result.dtype)).sum()


def error(a, b):
    return ((a.double() - b.double()).abs().max() / b.abs().max()).item()


FROZEN_HEAD = pytest.mark.parametrize("head_trains", [True, False], ids=["head trains", "frozen"])


def trained(problem, head_trains):
    problem.weight.requires_grad_(head_trains)
    problem.bias.requires_grad_(head_trains)
    return problem.inputs if head_trains else problem.inputs[:1]


@FROZEN_HEAD
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("token_weights", WEIGHTS)
def test_values_and_gradients_in_double(token_weights, reduction, head_trains):
    problem = Problem()
    inputs = trained(problem, head_trains)
    want = reduced(dense(problem, token_weights)[0], problem, reduction)
    got = lean(problem, token_weights, reduction)
    assert got.shape == want.shape and error(got, want) < 1e-13
    ours = torch.autograd.grad(scalar(got), inputs)
    theirs = torch.autograd.grad(scalar(want), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b) < 1e-12


@FROZEN_HEAD
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("token_weights", WEIGHTS)
def test_no_further_from_double_than_twice_torch(token_weights, dtype, reduction, head_trains):
    problem = Problem(dtype)
    exact = problem.double()
    found = []
    for each, make in ((exact, dense), (problem, dense), (problem, lean)):
        inputs = trained(each, head_trains)
        result = make(each, token_weights)
        losses = reduced(result[0] if make is dense else result, each, reduction)
        if make is lean and reduction == "mean":
            losses = lean(each, token_weights, "mean")
        found.append([losses, *torch.autograd.grad(scalar(losses), inputs)])
    for truth, theirs, ours in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert error(ours, truth) <= 2 * error(theirs, truth) + 2 * torch.finfo(ours.dtype).eps


@FROZEN_HEAD
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_the_entropy_of_each_token_and_its_gradient(reduction, head_trains):
    problem = Problem()
    inputs = trained(problem, head_trains)
    losses, want = dense(problem, "probability")
    losses = reduced(losses, problem, reduction)
    loss, got = lean(problem, "probability", reduction, return_entropy=True)
    assert error(got, want) < 1e-13 and error(loss, losses) < 1e-13
    assert not got[problem.target == -100].any()
    ours = torch.autograd.grad(scalar(loss) + scalar(got), inputs)
    theirs = torch.autograd.grad(scalar(losses) + scalar(want), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b) < 1e-12


def test_a_class_of_probability_zero_counts_as_nothing_in_the_entropy():
    problem = Problem()
    with torch.no_grad():
        problem.bias[problem.target.unique().max() + 1 :] = -float("inf")
        problem.bias[:3] = -1e5
        problem.target[problem.target < 3] = 3
    loss, entropy = lean(problem, return_entropy=True)
    (loss.sum() + entropy.sum()).backward()
    assert entropy.isfinite().all() and problem.hidden.grad.isfinite().all()


@pytest.mark.parametrize(
    "selection", [sft.Columns([1, 5]), sft.Rows([0, 49]), sft.Entries(torch.arange(0, 1200, 7))]
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_selected_entries_of_the_head(selection, reduction):
    problem = Problem()
    losses = reduced(dense(problem, "probability")[0], problem, reduction)
    (want,) = torch.autograd.grad(scalar(losses), [problem.weight])
    frozen = problem.weight.detach()
    values = selection.gather(frozen).requires_grad_()
    problem.weight = frozen
    got = lean(problem, "probability", reduction, values=values, selection=selection)
    (grad,) = torch.autograd.grad(scalar(got), [values])
    assert error(grad, selection.gather(want)) < 1e-12


def dense_divergence(problem, reference, reference_weight, direction):
    log_p = F.linear(*problem.inputs).log_softmax(-1)
    log_q = F.linear(reference, reference_weight, problem.bias.detach()).log_softmax(-1)
    if direction == "reverse":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    return F.kl_div(log_p, log_q.exp(), reduction="none").sum(-1)


@FROZEN_HEAD
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_divergence_from_a_reference(reduction, direction, head_trains):
    problem = Problem()
    inputs = trained(problem, head_trains)
    reference = problem.hidden.detach() + 0.3 * torch.randn_like(problem.hidden)
    other = problem.weight.detach() + 0.1 * torch.randn_like(problem.weight)
    want = dense_divergence(problem, reference, other, direction)
    want = want if reduction == "none" else want.mean()
    got = linear_kl_divergence(
        problem.hidden,
        problem.weight,
        reference,
        problem.bias,
        reference_weight=other,
        direction=direction,
        reduction=reduction,
    )
    assert error(got, want) < 1e-12
    ours = torch.autograd.grad(scalar(got), inputs)
    theirs = torch.autograd.grad(scalar(want), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert error(a, b) < 1e-11


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_divergence_in_single_no_further_from_double_than_twice_torch(direction):
    problem = Problem(torch.float32)
    exact = problem.double()
    reference = problem.hidden.detach() + 0.3 * torch.randn_like(problem.hidden)
    found = []
    for each, make in ((exact, True), (problem, True), (problem, False)):
        away = reference.to(each.hidden.dtype)
        own = each.weight.detach()
        if make:
            result = dense_divergence(each, away, own, direction)
        else:
            result = linear_kl_divergence(
                each.hidden, each.weight, away, each.bias, direction=direction
            )
        found.append([result, *torch.autograd.grad(scalar(result), each.inputs)])
    for truth, theirs, ours in zip(*found, strict=True):
        assert error(ours, truth) <= 2 * error(theirs, truth) + 2 * torch.finfo(ours.dtype).eps


CALLS = {
    "none": lambda problem: scalar(lean(problem, "entropy")),
    "mean": lambda problem: lean(problem, "entropy", "mean"),
    "entropy": lambda problem: sum(map(scalar, lean(problem, return_entropy=True))),
    "divergence": lambda problem: linear_kl_divergence(
        problem.hidden, problem.weight, problem.hidden.detach() + 1, reduction="sum"
    ),
}


@FROZEN_HEAD
@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_of_tokens_times_classes_is_made(name, head_trains):
    problem = Problem(torch.float32, ignored=0)
    trained(problem, head_trains)
    with Largest(problem.weight) as largest:
        CALLS[name](problem).backward()
    tokens = BATCH * LENGTH
    own = max(FEATURES * CLASSES, FEATURES * tokens)  # of the head and of the hidden states
    assert 16 * CLASSES <= largest.entries <= max(own, 16 * CLASSES) < tokens * CLASSES


def test_what_is_kept_of_a_frozen_head_is_one_gradient_of_the_tokens_that_weigh():
    problem = Problem(ignored=40)
    trained(problem, False)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    )
    with hooks:
        lean(problem, "given")
    weighing = int(((problem.target != -100) & (problem.weights != 0)).sum())
    assert max(saved) <= weighing * FEATURES


def test_a_function_of_the_tokens_is_asked_once_for_each():
    problem = Problem()
    seen = []
    loss = linear_cross_entropy(
        problem.hidden,
        problem.weight,
        problem.target,
        reduction="none",
        token_weights=lambda tokens: seen.append(tokens.target) or torch.rand(len(tokens.loss)),
    )
    loss.sum().backward()
    assert torch.equal(torch.cat(seen), problem.target[problem.target != -100])


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_where_no_token_counts(reduction):
    problem = Problem(ignored=BATCH * LENGTH)
    loss = lean(problem, "probability", reduction)
    assert loss.isnan() if reduction == "mean" else not loss.any()
    loss.sum().backward()
    assert not any(each.grad.any() for each in problem.inputs)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(token_weights=torch.ones(3, 18)), ValueError, r"token_weights.*\(3, 18\)"),
        (dict(token_weights=[1.0]), TypeError, "token_weights.*list"),
        (dict(token_weights=lambda tokens: 1.0), ValueError, "token_weights.*1.0"),
        (dict(token_weights=torch.ones(3, 19, requires_grad=True)), ValueError, "require grad"),
        (dict(reduction="none", divisor=3), ValueError, "divisor.*3"),
    ],
)
def test_refusals(change, error, says):
    problem = Problem()
    with pytest.raises(error, match=says):
        linear_cross_entropy(problem.hidden, problem.weight, problem.target, **change)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(direction="both"), "direction.*'both'"),
        (dict(reduction="max"), "reduction.*'max'"),
        (dict(reference_hidden=torch.zeros(3, 18, FEATURES)), r"reference_hidden.*\(3, 18\)"),
        (dict(reference_weight=torch.zeros(7, FEATURES)), "reference_weight.*50 classes.*7"),
    ],
)
def test_refusals_of_the_divergence(change, says):
    problem = Problem()
    given = {"reference_hidden": problem.hidden.detach(), **change}
    with pytest.raises(ValueError, match=says):
        linear_kl_divergence(problem.hidden, problem.weight, **given)
