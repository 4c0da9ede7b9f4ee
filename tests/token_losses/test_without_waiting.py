"""The loss as a GPU takes it, tried on the CPU: all tokens, those without a target masked."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_ft as sft
from sparse_ft.functional import linear_cross_entropy
from sparse_ft.token_losses import chunks as room

CLASSES, FEATURES, TOKENS = 50, 24, 57
# What tells the host a number of the device's, or has a shape that only the device knows.
WAITS = {
    torch.ops.aten.nonzero.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """In several chunks, the last one ragged."""
    monkeypatch.setattr(room, "takes_all_tokens", lambda hidden: True)
    monkeypatch.setattr(room, "CHUNK_BYTES", 0)
    monkeypatch.setattr(room, "GPU_TOKENS", 16)


class Waits(TorchDispatchMode):
    """Lists what would wait for the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS or torch.Tag.data_dependent_output in func.tags:
            self.found.append(func)
        return func(*args, **(kwargs or {}))


class Problem:
    """Tokens of which some have no target, and hidden states that must not be looked at."""

    def __init__(self, ignored=11, dtype=torch.float64):
        generator = torch.Generator().manual_seed(ignored)
        hidden = torch.randn(TOKENS, FEATURES, generator=generator, dtype=dtype)
        self.weight = torch.randn(CLASSES, FEATURES, generator=generator, dtype=dtype)
        self.bias = torch.randn(CLASSES, generator=generator, dtype=dtype)
        self.target = torch.randint(CLASSES, (TOKENS,), generator=generator)
        self.token_weights = torch.rand(TOKENS, generator=generator, dtype=dtype)
        self.token_weights[3:6] = 0
        self.target[torch.randperm(TOKENS, generator=generator)[:ignored]] = -100
        self.without = self.target == -100
        hidden[self.without] = float("nan")
        self.hidden = hidden.requires_grad_()

    def trained(self, head_trains):
        if head_trains:
            return [self.hidden, self.weight.requires_grad_(), self.bias.requires_grad_()]
        return [self.hidden]

    def dense(self, weighted, reduction):
        """(loss, entropies) of whole logits; gradients of hidden states without a target are 0."""
        hidden = self.hidden.where(~self.without[:, None], 0.0)
        log_p = F.linear(hidden, self.weight, self.bias).log_softmax(-1)
        losses = F.nll_loss(log_p, self.target, reduction="none")
        if weighted:
            losses = losses * self.token_weights
        entropy = -(log_p.exp() * log_p).sum(-1).masked_fill(self.without, 0)
        if reduction == "none":
            return losses, entropy
        return losses.sum() / (1 if reduction == "sum" else (~self.without).sum()), entropy


def scalar(result):
    """A number that each token has another part in."""
    if result.dim() == 0:
        return result
    return (result * torch.linspace(-1, 2, result.numel()).to(result.dtype)).sum()


def error(found, want):
    return ((found - want).abs().max() / want.abs().max()).item()


@pytest.mark.parametrize("return_entropy", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("head_trains", [True, False])
def test_values_and_gradients_without_waiting(head_trains, reduction, weighted, return_entropy):
    problem = Problem()
    inputs = problem.trained(head_trains)
    loss, entropy = problem.dense(weighted, reduction)
    want = scalar(loss) + (scalar(entropy) if return_entropy else 0)
    wanted = torch.autograd.grad(want, inputs)
    with Waits() as waits:
        result = linear_cross_entropy(
            problem.hidden,
            problem.weight,
            problem.target,
            problem.bias,
            reduction=reduction,
            token_weights=problem.token_weights if weighted else None,
            return_entropy=return_entropy,
        )
        parts = result if return_entropy else (result,)
        found = torch.autograd.grad(sum(map(scalar, parts)), inputs)
    assert not waits.found
    assert error(parts[0], loss) < 1e-13
    assert not return_entropy or error(parts[1], entropy) < 1e-13
    for ours, theirs in zip(found, wanted, strict=True):
        assert error(ours, theirs) < 1e-12
    assert not found[0][problem.without].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_where_no_token_counts(reduction):
    """A mean of nothing is NaN, and has no gradient."""
    problem = Problem(ignored=TOKENS)
    inputs = problem.trained(True)
    given = problem.hidden, problem.weight, problem.target, problem.bias
    for weights in (None, problem.token_weights):
        loss = linear_cross_entropy(*given, reduction=reduction, token_weights=weights)
        assert loss.isnan() if reduction == "mean" else not loss.any()
        assert not any(g.any() for g in torch.autograd.grad(loss.sum(), inputs))


def test_selected_entries_of_the_head():
    problem = Problem()
    selection = sft.Columns([1, 5])
    values = selection.gather(problem.weight).requires_grad_()
    loss = linear_cross_entropy(
        problem.hidden, problem.weight, problem.target, values=values, selection=selection
    )
    problem.bias.zero_()
    problem.weight.requires_grad_()
    (want,) = torch.autograd.grad(problem.dense(False, "mean")[0], [problem.weight])
    (found,) = torch.autograd.grad(loss, [values])
    assert error(found, selection.gather(want)) < 1e-12


def test_a_function_of_tokens_is_shown_those_with_a_target_alone():
    problem = Problem()
    seen = []

    def weigh(tokens):
        seen.append(tokens.target)
        return tokens.probability

    linear_cross_entropy(problem.hidden, problem.weight, problem.target, token_weights=weigh)
    assert torch.equal(torch.cat(seen), problem.target[~problem.without])


def test_chunks_fill_the_tiles_of_a_gpu(monkeypatch):
    monkeypatch.undo()
    on_cpu = torch.empty(1)
    monkeypatch.setattr(room, "takes_all_tokens", lambda hidden: hidden is not on_cpu)
    for classes in (2, 1000, 5003, 32000, 128256, 262144):
        rows = room.rows_of_chunk(torch.empty(1), classes)
        assert rows >= 512 and rows % 128 == 0
        assert rows == 512 or 4 * rows * classes <= room.CHUNK_BYTES
    assert room.rows_of_chunk(on_cpu, 128256) == 65
