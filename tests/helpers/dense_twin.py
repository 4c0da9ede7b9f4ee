"""One step of a converted model beside one of its dense twin.

Forward, gradients, what is said, and what revert gives back.
"""

import copy
import warnings

import torch
from helpers import architectures
from helpers.warned import messages_of
from torch import nn

import sparse_ft as sft

SEED = 3  # of dropout and its kind, before each forward
NO_GRADIENT = "no gradient reached"


def plan_of(model: nn.Module, turn: int = 0) -> sft.Plan:
    """A selection for every parameter that is not tied and no scalar.

    With `turn` 0 to 3 each gets each structure once.
    """
    every = [(name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.dim()]
    free = [name for name, p in every if sum(q is p for _, q in every) == 1]
    plan = {}
    for number, name in enumerate(free):
        shape, rows_only = sft.matrix_shape(model, name), architectures.is_embedding(model, name)
        plan[name] = architectures.selection(number + turn, shape, rows_only)
    return sft.Plan(plan)


def forward(model: nn.Module, inputs: object) -> torch.Tensor:
    """Every floating-point tensor of the model's output, in one vector."""
    torch.manual_seed(SEED)
    dtype = next(model.parameters()).dtype
    inputs = cast(inputs, dtype)
    out = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return torch.cat([tensor.flatten() for tensor in tensors_of(out)])


def cast(tree: object, dtype: torch.dtype) -> object:
    """The inputs with their floating-point tensors in `dtype`."""
    if isinstance(tree, dict):
        return {name: cast(branch, dtype) for name, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(cast(branch, dtype) for branch in tree)
    if isinstance(tree, torch.Tensor) and tree.is_floating_point():
        return tree.to(dtype)
    return tree


def tensors_of(tree: object) -> list:
    """The floating-point tensors that require grad in whatever a model returns."""
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    if isinstance(tree, dict):
        tree = list(tree.values())
    return (
        [tensor for branch in tree for tensor in tensors_of(branch)]
        if isinstance(tree, (tuple, list))
        else []
    )


def backward(model: nn.Module, inputs: object) -> torch.Tensor:
    """Gradients of the outputs' product with a fixed random vector; returns the outputs."""
    out = forward(model, inputs)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * probe.to(out.dtype)).sum().backward()
    return out.detach()


def dense_of(model: nn.Module, plan: sft.Plan) -> nn.Module:
    """A copy in which what the plan names requires grad: torch picks kernels by requires_grad."""
    twin = copy.deepcopy(model)
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in plan)
    return twin


def gradients_of(dense: nn.Module, plan: sft.Plan) -> dict:
    """{name: the selected entries of the dense gradient, or None}."""
    found = {}
    for name, what in plan.items():
        grad = dense.get_parameter(name).grad
        found[name] = (
            None if grad is None else what.gather(grad.reshape(sft.matrix_shape(dense, name)))
        )
    return found


def assert_trains_as_dense(
    model: nn.Module, inputs: object, plan: sft.Plan, training: bool = True
) -> None:
    """Everything that a converted model promises in one step, on copies of `model`."""
    model.train(training)
    dense, selective = dense_of(model, plan), copy.deepcopy(model)
    report = sft.convert(selective, plan)
    experts = {row.name for row in report.rows if row.how.startswith("experts")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = backward(dense, inputs)
    known = set(messages_of(caught))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.equal(backward(selective, inputs), expected), "the forward has other bits"
        want = gradients_of(dense, plan)
        got = {name: architectures.holder(selective, name).values.grad for name in plan}
        assert_gradients(dense, inputs, plan, got, want, experts)
        torch.optim.SGD(selective.parameters(), 0.1).step()
    assert_said(
        [message for message in messages_of(caught) if message not in known],
        {n for n in plan if want[n] is None},
    )

    moved = {name: tensor.clone() for name, tensor in selective.state_dict().items()}
    assert_reverted(sft.revert(selective), model, plan, moved)
    untouched = copy.deepcopy(model)
    sft.convert(untouched, plan)
    sft.revert(untouched)
    for (name, a), b in zip(untouched.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(bits(a), bits(b)), f"{name} has other bits after convert and revert"


def assert_lean_is_as_exact(model: nn.Module, inputs: object, plan: sft.Plan) -> None:
    """Lean and converted: outputs and gradients are at most twice as far from fp64 as the dense
    model's furthest ones.
    """
    model.train()
    dense, exact, lean = (
        dense_of(model, plan),
        architectures.double(dense_of(model, plan)),
        copy.deepcopy(model),
    )
    sft.convert(lean, plan, lean=True)
    plain, want, got = (backward(m, inputs) for m in (dense, exact, lean))
    assert furthest(got, want) <= 2 * furthest(plain, want) + 1e-6 * want.abs().max().item(), (
        "outputs"
    )
    plain, want = gradients_of(dense, plan), gradients_of(exact, plan)
    got = {name: architectures.holder(lean, name).values.grad for name in plan}
    trained = [name for name in plan if want[name] is not None]
    assert trained == [name for name in plan if got[name] is not None]
    noise = max(furthest(plain[name], want[name]) for name in trained)
    largest = max(want[name].abs().max().item() for name in trained)
    for name in trained:
        error = furthest(got[name], want[name])
        assert error <= 2 * noise + 1e-6 * largest, (
            f"{name}: gradient {error:.2e} from exact, dense {noise:.2e}"
        )


def assert_gradients(model, inputs, plan, got, want, experts=()):
    """Aliases have the bits of the dense gradient.

    Replaced layers' weights and biases are at most twice as far from fp64, and so are weights that
    hold `experts`, whose gradients are products of their own.

    How far the dense gradient is, its whole tells: the few selected entries of it may be near by
    chance.
    """
    replaced, _ = architectures.split(model, plan)
    owners = {name.rpartition(".")[0] for name in replaced}
    close = [name for name in plan if name.rpartition(".")[0] in owners or name in experts]
    close = [name for name in close if want[name] is not None]
    for name in plan:
        assert (got[name] is None) == (want[name] is None), (
            f"{name}: gradient {got[name]}, dense {want[name]}"
        )
        if name not in close:
            assert want[name] is None or torch.equal(got[name], want[name]), (
                f"{name} has another gradient than dense"
            )
    if not close:
        return
    exact_model = architectures.double(dense_of(model, plan))
    backward(exact_model, inputs)
    exact = gradients_of(exact_model, plan)
    for name in close:
        error = furthest(got[name], exact[name])
        theirs = furthest(model.get_parameter(name).grad, exact_model.get_parameter(name).grad)
        slack = (
            0
            if name in replaced or name in experts
            else 1e-7 * max(furthest(exact[other], exact[other] * 0) for other in close)
        )
        assert error <= 2 * theirs + slack + 1e-30, (
            f"{name}: gradient {error:.2e} from exact, dense {theirs:.2e}"
        )


def furthest(a, b):
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


def assert_said(messages, silent):
    """A warning names each parameter without a gradient, and there is no other."""
    for name in silent:
        assert any(name in message and NO_GRADIENT in message for message in messages), (
            f"nothing says that {name} is idle"
        )
    for message in messages:
        assert NO_GRADIENT in message and any(name in message for name in silent), (
            f"unexpected: {message}"
        )


def assert_reverted(model, born, plan, moved):
    """Classes, flags, hooks and names are those of `born`.

    Weights those that were trained, selected entries alone.
    """
    assert [type(m) for m in model.modules()] == [type(m) for m in born.modules()]
    hooks = [
        hook
        for m in model.modules()
        for hook in (*m._forward_pre_hooks.values(), *m._forward_hooks.values())
    ]
    # Transformers has hooks of its own.
    assert not [hook for hook in hooks if hook.__module__.startswith("sparse_ft")]
    assert list(model.state_dict()) == list(born.state_dict())
    for (name, now), before in zip(model.named_parameters(), born.parameters(), strict=True):
        assert torch.equal(bits(now), bits(moved[name])), f"{name} has other bits after revert"
        assert now.requires_grad == before.requires_grad, f"{name}: requires_grad"
        changed = bits(now) != bits(before)
        if name in plan:
            shape = sft.matrix_shape(born, name)
            changed = changed.reshape(shape) & ~plan[name].mask(shape).to(changed.device)
        assert not changed.any(), f"{name}: entries that are not selected changed"


def bits(tensor):
    return (
        tensor.detach()
        .contiguous()
        .view({8: torch.int64, 4: torch.int32, 2: torch.int16}[tensor.element_size()])
    )
