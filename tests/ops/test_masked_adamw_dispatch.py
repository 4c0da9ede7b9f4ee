"""masked_adamw_ as torch sees it: versions, modes, subclasses, graphs, threads."""

import oracle
import pytest
import torch
from adamw_problem import SHAPE, Problem, snapshot, unchanged
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_ft import ops


def test_version_of_everything_written_moves_and_of_nothing_else(device):
    problem = Problem(device=device)
    read = [*problem.grads, *(layout[1] for layout in problem.layouts)]
    before = [t._version for t in problem.state], [t._version for t in read]
    problem.step(ops.masked_adamw_)
    assert (
        all(t._version > v for t, v in zip(problem.state, before[0], strict=True))
        and [t._version for t in read] == before[1]
    )


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ops.append(function)
        return function(*args, **(kwargs or {}))


def test_whoever_intercepts_operators_sees_this_one(device):
    """Ordinary tensors go past the dispatcher only while nobody listens there.

    The bits are the same.
    """
    torch.manual_seed(1)
    one, two = Problem(device=device), Problem(device=device)
    for name in ("values", "weights", "grads"):
        setattr(two, name, snapshot(getattr(one, name)))
    with Seen() as seen:
        one.step(ops.masked_adamw_)
    two.step(ops.masked_adamw_)
    assert torch.ops.sparse_ft.masked_adamw_.default in seen.ops
    assert unchanged(one.state, two.state)


def test_a_subclass_of_tensor_goes_through_the_dispatcher():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=False):
        problem = Problem(kinds=(), plain=((5,),))
        problem.step(ops.masked_adamw_)  # the shape function has run: nothing to read or to write
    with pytest.raises(ValueError, match="grads: expected 1 items, .*got 0"):
        problem.grads = []
        problem.step(ops.masked_adamw_)


def test_tensors_of_inference_mode_step(adamw_):
    with torch.inference_mode():
        problem = Problem(kinds=("rows",), plain=((3,),))
        before = snapshot(problem.values)
        problem.step(adamw_)
        assert not any(oracle.same_bits(a, b) for a, b in zip(problem.values, before, strict=True))


def test_autograd_notices_a_step_between_forward_and_backward(device):
    problem = Problem(kinds=("rows",), plain=(), device=device)
    x = torch.ones(2, SHAPE[1], device=device, requires_grad=True)
    loss = torch.nn.functional.linear(x, problem.weights[0]).sum()
    problem.step(ops.masked_adamw_)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_threads_do_not_change_the_bits(adamw_):
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(4)
        problem = Problem(plain=((70001,), ()), weight_dtype=torch.bfloat16)
        for _ in range(2):
            problem.step(adamw_)
        results.append(problem.state)
    assert unchanged(results[0], results[1]) and unchanged(results[0], results[2])


@pytest.mark.parametrize("variant", ["contiguous", "permuted", "sliced", "empty"])
def test_opcheck(variant, device):
    which, form = ("empty", "contiguous") if variant == "empty" else ("some", variant)
    problem = Problem(which=which, form=form, plain=((5,),), device=device)
    keywords = {
        **problem.hyper,
        "found_inf": torch.zeros(1, device=device),
        "grad_scale": torch.ones(1, device=device),
    }
    torch.library.opcheck(torch.ops.sparse_ft.masked_adamw_.default, problem.arguments, keywords)


def test_lr_is_read_from_tensors_when_the_step_runs(adamw_, device):
    torch.manual_seed(1)
    problem = Problem(device=device, which="some")
    torch.manual_seed(1)
    want = Problem(device=device, which="some")
    lrs = [torch.full((1,) * (i % 2), 0.1, device=device) for i in range(len(problem.values))]
    for i, lr in enumerate((0.01, 0.02)):
        for tensor in lrs:
            tensor.fill_(lr * (i + 1))
        problem.step(adamw_, lr=[1e3] * len(lrs), lrs=lrs)
        want.step(adamw_, lr=[tensor.item() for tensor in lrs])
    assert unchanged(problem.state, want.state)
    torch.library.opcheck(
        torch.ops.sparse_ft.masked_adamw_.default, problem.arguments, {**problem.hyper, "lrs": lrs}
    )
