"""masked_adamw_ against fp64 torch.optim.AdamW on the dense weight with a masked gradient.

What it must leave alone.
"""

import oracle
import pytest
import torch
from adamw_problem import SHAPE, Problem, snapshot, unchanged

from sparse_ft.ops._eight_bit import dequantize


def run_against_dense(problem, adamw_, steps=4, maximize=False, **keywords):
    """Side by side: dense weights in fp64 with masked gradients, compact values by plain PyTorch in
    their dtype.
    """
    linked, dtype = len(problem.weights), problem.values[0].dtype
    masks = [oracle.mask(layout, SHAPE) for layout in problem.layouts]
    dense = [t.cpu().double().clone() for t in [*problem.weights, *problem.values[linked:]]]
    start, first_weights = snapshot(dense), snapshot(problem.weights)
    plain = [v.cpu().clone() for v in problem.values]
    dense_optimizer, plain_optimizer = (
        problem.torch_optimizer(dense, maximize),
        problem.torch_optimizer(plain, maximize),
    )
    for _ in range(steps):
        problem.new_grads()
        for i, grad in enumerate(problem.grads):
            dense[i].grad = (
                oracle.spread(grad.cpu().double(), problem.layouts[i], SHAPE)
                if i < linked
                else grad.cpu().double()
            )
            plain[i].grad = grad.cpu().clone()
        scale = keywords.get("grad_scale")
        if scale is not None:
            problem.grads = [grad * scale.item() for grad in problem.grads]
        dense_optimizer.step()
        plain_optimizer.step()
        problem.step(adamw_, maximize=maximize, **keywords)
    for i, value in enumerate(problem.values):
        want = (
            oracle.gather(dense[i].detach(), problem.layouts[i])
            if i < linked
            else dense[i].detach()
        )
        slack = steps * torch.finfo(dtype).eps * max(1.0, want.abs().amax().item()) / 2
        oracle.assert_as_good_as_plain(value, want, plain[i], slack)
        for ours, name in ((problem.exp_avgs, "exp_avg"), (problem.exp_avg_sqs, "exp_avg_sq")):
            moment = dense_optimizer.state[dense[i]][name]
            moment = oracle.gather(moment, problem.layouts[i]) if i < linked else moment
            oracle.assert_as_good_as_plain(
                ours[i],
                moment,
                plain_optimizer.state[plain[i]][name],
                steps * torch.finfo(dtype).eps * moment.abs().amax().item(),
            )
        assert problem.steps[i].item() == steps
    for i, weight in enumerate(problem.weights):
        shown = oracle.spread(value_in(problem.values[i], weight.dtype), problem.layouts[i], SHAPE)
        assert oracle.same_bits(weight, torch.where(masks[i], shown, first_weights[i].cpu()))
        assert (dense[i].detach() != start[i])[masks[i]].any()


@pytest.mark.parametrize("beta1", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_small_beta1_equals_dense_adamw_with_a_masked_gradient(adamw_, dtype, beta1, device):
    run_against_dense(Problem(dtype=dtype, device=device, beta1=beta1), adamw_)


def two_steps_with_beta1_of_zero(adamw_, **keywords):
    """The second gradient is below the last digit of the first: m + (g - m) would be zero."""
    problem = Problem(beta1=0.0, **keywords)
    for size in (2.0**12, 2.0**-9):
        problem.new_grads()
        for grad in problem.grads:
            grad.mul_(size)
        problem.step(adamw_)
    return problem


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_beta1_of_zero_keeps_the_last_gradient_however_large_the_one_before(adamw_, dtype, device):
    problem = two_steps_with_beta1_of_zero(adamw_, dtype=dtype, device=device)
    for exp_avg, grad in zip(problem.exp_avgs, problem.grads, strict=True):
        assert torch.equal(exp_avg, grad)


def test_beta1_of_zero_with_moments_in_8_bits(adamw_, device):
    problem = two_steps_with_beta1_of_zero(adamw_, stored="8 bits", device=device)
    for codes, absmax, grad in zip(
        problem.exp_avgs, problem.absmaxes[::2], problem.grads, strict=True
    ):
        exp_avg = dequantize(codes.flatten(), absmax, signed=True).view_as(grad)
        assert (exp_avg - grad).abs().max() <= 0.02 * grad.abs().max(), (
            "half the widest gap between codes"
        )


@pytest.mark.parametrize("beta1", [0.9, 0.5000001, 0.5, 0.3, 0.0])
def test_exp_avg_goes_from_its_nearer_end_bit_for_bit(adamw_, beta1):
    """Above one half as ever: m + (g - m) (1 - beta1)."""
    problem = Problem(plain=((9001,),), beta1=beta1)
    share = torch.tensor(1 - beta1)
    for _ in range(3):
        problem.new_grads()
        before = snapshot(problem.exp_avgs)
        problem.step(adamw_)
        for m, g, got in zip(before, problem.grads, problem.exp_avgs, strict=True):
            want = m + (g - m) * share if share < 0.5 else g - (g - m) * (1 - share)
            assert oracle.same_bits(got, want)


def value_in(value, dtype):
    return value.detach().cpu().to(dtype)


@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_equals_dense_adamw_with_a_masked_gradient(adamw_, dtype, device):
    run_against_dense(Problem(dtype=dtype, device=device), adamw_)


def test_fp64_equals_dense_to_the_last_digits(adamw_, device):
    problem = Problem(dtype=torch.float64, device=device)
    dense = [v.cpu().clone() for v in problem.values]
    optimizer = problem.torch_optimizer(dense)
    for _ in range(20):
        problem.new_grads()
        for p, grad in zip(dense, problem.grads, strict=True):
            p.grad = grad.cpu().clone()
        optimizer.step()
        problem.step(adamw_)
    assert all(
        torch.allclose(v.cpu(), p, rtol=1e-13, atol=1e-13)
        for v, p in zip(problem.values, dense, strict=True)
    )


@pytest.mark.parametrize("weight_dtype", oracle.DTYPES, ids=oracle.name_of)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_weights_of_another_dtype_show_the_rounded_values(adamw_, dtype, weight_dtype, device):
    problem = Problem(dtype=dtype, weight_dtype=weight_dtype, plain=(), device=device)
    before = snapshot(problem.weights)
    for _ in range(2):
        problem.new_grads()
        problem.step(adamw_)
    for weight, value, layout, old in zip(
        problem.weights, problem.values, problem.layouts, before, strict=True
    ):
        shown = oracle.spread(value_in(value, weight_dtype), layout, SHAPE)
        assert oracle.same_bits(
            weight, torch.where(oracle.mask(layout, SHAPE), shown, old.cpu())
        ), layout[0]


def test_small_updates_survive_in_fp32_values_over_a_bf16_weight(adamw_, device):
    problem = Problem(
        dtype=torch.float32,
        weight_dtype=torch.bfloat16,
        plain=(),
        lr=1e-5,
        weight_decay=0.0,
        device=device,
    )
    start, first = snapshot(problem.values), snapshot(problem.weights)
    for _ in range(3):
        problem.step(adamw_)
    for value, old, layout in zip(problem.values, start, problem.layouts, strict=True):
        assert (value != old)[~oracle.padding(layout, SHAPE).to(device)].all()
    changed = sum(int((w != old).sum()) for w, old in zip(problem.weights, first, strict=True))
    assert changed < sum(v.numel() for v in problem.values) / 10


@pytest.mark.parametrize("form", ["permuted", "sliced", "strided"])
def test_weights_of_every_memory_format(adamw_, form, device):
    run_against_dense(Problem(form=form, device=device), adamw_, steps=2)


@pytest.mark.parametrize("which", ["last", "all"])
def test_small_and_whole_selections(adamw_, which, device):
    run_against_dense(Problem(which=which, plain=(), device=device), adamw_, steps=2)


def test_maximize(adamw_, device):
    run_against_dense(Problem(device=device), adamw_, maximize=True)


@pytest.mark.parametrize("extra", [{}, {"skip_nonfinite": True}], ids=["plain", "checked"])
def test_grad_scale_divides(adamw_, extra, device):
    keywords = {
        "grad_scale": torch.tensor([1024.0], device=device),
        "found_inf": torch.zeros(1, device=device),
        **extra,
    }
    run_against_dense(Problem(device=device), adamw_, **keywords)
    assert keywords["found_inf"].item() == 0 and keywords["grad_scale"].item() == 1024


def test_scaled_gradients_do_not_underflow_in_fp16(adamw_, device):
    problem = Problem(dtype=torch.float16, plain=((4,),), kinds=(), weight_decay=0.0, device=device)
    problem.grads = [torch.full((4,), 1e-3, dtype=torch.float16, device=device)]
    before = snapshot(problem.values)
    # 3e-8 once divided: below fp16's smallest, not below fp32's
    problem.step(adamw_, grad_scale=torch.tensor(2.0**15, device=device))
    assert (problem.exp_avgs[0] == 0).all() and not unchanged(problem.values, before)


def test_decay_acts_on_selected_entries_only(adamw_, device):
    problem = Problem(lr=0.1, weight_decay=0.5, device=device)
    before, weights = snapshot(problem.values), snapshot(problem.weights)
    problem.grads = [torch.zeros_like(g) for g in problem.grads]
    problem.step(adamw_)
    for i, (value, old) in enumerate(zip(problem.values, before, strict=True)):
        assert torch.allclose(value, old * (1 - problem.hyper["lr"][i] * 0.5), rtol=1e-6)
    for weight, old, layout in zip(problem.weights, weights, problem.layouts, strict=True):
        chosen = oracle.mask(layout, SHAPE)
        assert (
            oracle.same_bits(weight.cpu()[~chosen], old.cpu()[~chosen])
            and (weight.cpu() != old.cpu())[chosen].all()
        )


def test_padding_of_blocks_stays_zero(adamw_, device):
    problem = Problem(kinds=("blocks",), which="all", plain=(), device=device)
    padding = oracle.padding(problem.layouts[0], SHAPE).to(device)
    assert padding.any()
    for _ in range(3):
        problem.new_grads()
        problem.step(adamw_)
    assert not problem.values[0][padding].any() and not problem.exp_avgs[0][padding].any()


def test_step_counts_of_their_own(adamw_, device):
    """Parameters that joined later have a smaller step, and their own bias correction."""
    problem = Problem(kinds=("rows",), plain=((4,), (4,)), device=device)
    problem.values[2].copy_(problem.values[1])
    problem.grads[2].copy_(problem.grads[1])
    problem.hyper["lr"][2] = problem.hyper["lr"][1]
    problem.hyper["eps"][2] = problem.hyper["eps"][1]
    problem.steps[2].fill_(100)
    problem.step(adamw_)
    assert [s.item() for s in problem.steps] == [1, 1, 101]
    assert (problem.values[1] != problem.values[2]).all() and torch.equal(
        problem.exp_avgs[1], problem.exp_avgs[2]
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("dtype", oracle.DTYPES, ids=oracle.name_of)
def test_skip_nonfinite_changes_nothing_at_all(adamw_, dtype, value, device):
    problem = Problem(dtype=dtype, device=device)
    problem.step(adamw_)
    for i in (0, 2, len(problem.values) - 1):
        for at in {0, problem.grads[i].numel() - 1}:
            problem.new_grads()
            problem.grads[i].view(-1)[at] = value
            before, found = snapshot(problem.state), torch.zeros(1, device=device)
            problem.step(adamw_, skip_nonfinite=True, found_inf=found)
            assert found.item() == 1 and unchanged(problem.state, before)
    found = torch.zeros((), device=device)
    problem.new_grads()
    problem.step(adamw_, skip_nonfinite=True, found_inf=found)
    assert (
        found.item() == 0
        and all(s.item() == 2 for s in problem.steps)
        and not unchanged(problem.state, before)
    )


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_found_inf_on_entry_skips_the_step(adamw_, skip_nonfinite, device):
    problem = Problem(device=device)
    before, found = snapshot(problem.state), torch.ones(1, device=device)
    problem.step(
        adamw_,
        found_inf=found,
        skip_nonfinite=skip_nonfinite,
        grad_scale=torch.tensor(2.0, device=device),
    )
    assert unchanged(problem.state, before) and found.item() == 1
    problem.step(adamw_, found_inf=torch.zeros(1, device=device), skip_nonfinite=skip_nonfinite)
    assert not unchanged(problem.state, before)


def test_without_the_check_a_non_finite_gradient_stays_in_its_entry(adamw_, device):
    problem = Problem(kinds=("columns",), plain=(), device=device)
    problem.grads[0][3, 1] = float("nan")
    problem.step(adamw_)
    assert (
        problem.values[0].isnan().sum() == 1
        and problem.weights[0].isnan().sum() == 1
        and problem.values[0][3, 1].isnan()
    )


def test_gradients_and_indices_with_strides(adamw_, device):
    one, two = Problem(device=device), Problem(device=device)
    for name in ("values", "weights", "grads"):
        setattr(two, name, snapshot(getattr(one, name)))
    two.grads = [
        g.T.contiguous().T if g.dim() == 2 else torch.stack((g, g), -1)[..., 0] for g in two.grads
    ]
    two.layouts = [
        (kind, torch.stack((index, index), -1)[..., 0], *block)
        for kind, index, *block in two.layouts
    ]
    one.step(adamw_)
    two.step(adamw_)
    assert unchanged(one.state, two.state)


def test_values_with_strides(adamw_, device):
    one, two = (
        Problem(kinds=("columns",), plain=(), device=device),
        Problem(kinds=("columns",), plain=(), device=device),
    )
    two.values, two.weights, two.grads = (
        [t.T.contiguous().T for t in snapshot(ts)] for ts in (one.values, one.weights, one.grads)
    )
    one.step(adamw_)
    two.step(adamw_)
    assert all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-7)
        for a, b in zip(one.state, two.state, strict=True)
    )


def test_empty_selection_and_no_tensors_at_all(adamw_, device):
    problem = Problem(which="empty", plain=((0,), (2,)), device=device)
    weights = snapshot(problem.weights)
    problem.step(adamw_)
    assert unchanged(problem.weights, weights) and all(s.item() == 1 for s in problem.steps)
    Problem(kinds=(), plain=(), device=device).step(adamw_)


def test_positions_past_2_to_the_31(adamw_, tmp_path):
    shape = 46500, 46500
    weight = torch.from_file(
        str(tmp_path / "m"), shared=True, size=shape[0] * shape[1], dtype=torch.float16
    ).view(shape)
    problem = Problem(kinds=(), plain=((10,), (2, 46500)), lr=0.5, weight_decay=0.0)
    problem.weights = [weight, weight]
    problem.layouts = [
        ("entries", torch.arange(10) + 46498 * shape[1], 1, 1),
        ("rows", torch.tensor([7, 46499]), 1, 1),
    ]
    problem.step(adamw_)
    assert torch.equal(weight[46498, :10], problem.values[0].half()) and torch.equal(
        weight[[7, 46499]], problem.values[1].half()
    )
    assert not weight[46498, 10:].any() and not weight[6].any()
