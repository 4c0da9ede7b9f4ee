"""What masked_adamw_ refuses: by name, before anything is written."""

import pytest
import torch
from adamw_problem import HYPER, Problem, assert_refused


@pytest.mark.parametrize(
    "lrs, error, message",
    [
        ([], ValueError, "lrs: expected None or 2 items, one a tensor of values, got 0"),
        (
            [torch.ones(()), torch.ones(2)],
            ValueError,
            r"lrs: expected one element, got shape \(2,\)",
        ),
        (
            [torch.ones(()), torch.ones((), dtype=torch.float64)],
            TypeError,
            "lrs: expected torch.float32, got torch.float64",
        ),
    ],
)
def test_lrs_that_do_not_fit_are_refused(adamw_, lrs, error, message):
    problem = Problem(kinds=("rows",), plain=((3,),))
    assert_refused(problem, adamw_, error, message, lrs=lrs)


def replaced(name, at, new):
    def change(problem):
        getattr(problem, name)[at] = new(getattr(problem, name)[at])

    return change


def shortened(name):
    def change(problem):
        problem.hyper[name].pop() if name in HYPER else getattr(problem, name).pop()

    return change


@pytest.mark.parametrize(
    "change, keywords, error, message",
    [
        *(
            (shortened(name), {}, ValueError, rf"{name}: expected 7 .*got 6")
            for name in (
                "grads",
                "exp_avgs",
                "exp_avg_sqs",
                "steps",
                "lr",
                "beta1",
                "beta2",
                "eps",
                "weight_decay",
            )
        ),
        (shortened("layouts"), {}, ValueError, r"weights: .*got 4, 3, 3"),
        *(
            (
                replaced(name, 1, lambda t: t[:-1].clone()),
                {},
                ValueError,
                rf"{name}: .*\(17, 8\).*\(16, 8\)",
            )
            for name in ("grads", "exp_avgs")
        ),
        (
            replaced("exp_avg_sqs", 0, lambda t: t.double()),
            {},
            ValueError,
            r"exp_avg_sqs: .*torch.float32.*torch.float64",
        ),
        (replaced("grads", 6, lambda t: t.half()), {}, ValueError, r"grads: .*torch.float16"),
        (replaced("steps", 3, lambda t: t.double()), {}, TypeError, r"steps: .*torch.float64"),
        (replaced("steps", 3, lambda t: t.long()), {}, TypeError, r"steps: .*torch.int64"),
        (replaced("steps", 3, lambda t: torch.zeros(2)), {}, ValueError, r"steps: .*\(2,\)"),
        (replaced("weights", 0, lambda t: t[:, :-1]), {}, ValueError, r"values: .*\(17, 21\)"),
        (replaced("weights", 0, lambda t: t.view(-1)), {}, ValueError, r"matrix: .*\(374,\)"),
        (
            replaced("layouts", 0, lambda layout: ("diagonal", *layout[1:])),
            {},
            ValueError,
            r"kind: .*'diagonal'",
        ),
        (
            replaced("layouts", 2, lambda layout: (*layout[:2], 0, 8)),
            {},
            ValueError,
            r"block_size: .*\(0, 8\)",
        ),
        (
            replaced("layouts", 3, lambda layout: (layout[0], layout[1].float(), 1, 1)),
            {},
            TypeError,
            r"index: .*torch.float32",
        ),
        (None, {"skip_nonfinite": True}, ValueError, r"found_inf: .*None"),
        (
            None,
            {"skip_nonfinite": True, "found_inf": torch.zeros(2)},
            ValueError,
            r"found_inf: .*\(2,\)",
        ),
        (
            None,
            {"skip_nonfinite": True, "found_inf": torch.zeros(1, dtype=torch.float64)},
            TypeError,
            r"found_inf: .*torch.float64",
        ),
        (None, {"grad_scale": torch.ones(2)}, ValueError, r"grad_scale: .*\(2,\)"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(adamw_, change, keywords, error, message):
    problem = Problem()
    if change is not None:
        change(problem)
    assert_refused(problem, adamw_, error, message, **keywords)


def test_values_that_are_not_floating_point_are_refused(adamw_):
    problem = Problem(kinds=(), plain=((3,),))
    for name in ("values", "grads", "exp_avgs", "exp_avg_sqs"):
        setattr(problem, name, [t.long() for t in getattr(problem, name)])
    with pytest.raises(TypeError, match=r"values: .*torch.int64"):
        problem.step(adamw_)
    assert problem.steps[0].item() == 0
