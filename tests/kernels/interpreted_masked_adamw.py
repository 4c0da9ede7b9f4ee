import pytest
import torch
from oracle import (
    CASES,
    DEVICE,
    bits,
    gather,
    places,
    random,
    selected_mask,
    transposed,
    within_twice,
)
from sparse_ft.kernels.masked_adamw import masked_adamw_triton_

from sparse_ft.kernels import masked_adamw

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HYPER = dict(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.1)


class Problem:
    """Values with their state, the first of them selected from weights, and the step that plain
    PyTorch would take.
    """

    def __init__(self, names, plain=(), dtype=torch.float32, weight_dtype=torch.bfloat16):
        cases = [CASES[name] for name in names]
        shapes = [places(*case)[0].shape for case in cases] + list(plain)
        self.cases, self.kinds, self.indices = cases, [c[2] for c in cases], [c[3] for c in cases]
        self.blocks = [size for case in cases for size in case[4:]]
        self.weights = [random(*case[:2], dtype=weight_dtype) for case in cases]
        self.values, self.grads, self.exp_avgs = (
            [random(*s, dtype=dtype) for s in shapes] for _ in range(3)
        )
        self.exp_avg_sqs = [random(*s, dtype=dtype).square() for s in shapes]
        self.steps = [torch.tensor(float(i), device=DEVICE) for i in range(len(shapes))]
        self.hyper = {
            name: [x * (1 - i / 100) for i in range(len(shapes))] for name, x in HYPER.items()
        }

    def step(self, **options):
        masked_adamw_triton_(
            self.values, self.grads, self.exp_avgs, self.exp_avg_sqs, self.steps,
            self.weights, self.kinds, self.indices, self.blocks, **self.hyper, **options,
        )  # fmt: skip

    def tensors(self):
        return [*self.values, *self.exp_avgs, *self.exp_avg_sqs, *self.steps, *self.weights]

    def expected(self, math, grad_scale=1.0, maximize=False):
        """[(values, exp_avg, exp_avg_sq)] after a step in `math`."""
        return [self._expected(i, math, grad_scale, maximize) for i in range(len(self.values))]

    def _expected(self, i, math, grad_scale, maximize):
        p, g, m, v = (
            x[i].to(math) for x in (self.values, self.grads, self.exp_avgs, self.exp_avg_sqs)
        )
        lr, beta1, beta2, eps, weight_decay = (self.hyper[name][i] for name in HYPER)
        step = self.steps[i].item() + 1
        g = g / (-grad_scale if maximize else grad_scale)
        p = p * (1 - lr * weight_decay)
        share = 1 - beta1  # torch.lerp's formula, from the nearer end
        m = m + (g - m) * share if share < 0.5 else g - (g - m) * (1 - share)
        v = v * beta2 + g * g * (1 - beta2)
        p = p - (lr / (1 - beta1**step)) * m / (v.sqrt() / (1 - beta2**step) ** 0.5 + eps)
        return p, m, v

    def check_step(self, grad_scale=1.0, maximize=False, **options):
        dtype = self.values[0].dtype
        exact = self.expected(torch.float64, grad_scale, maximize)
        plain = self.expected(torch.promote_types(dtype, torch.float32), grad_scale, maximize)
        weights = [weight.clone() for weight in self.weights]
        steps = [step.item() for step in self.steps]
        scale = None if grad_scale == 1 else torch.tensor([grad_scale], device=DEVICE)
        self.step(grad_scale=scale, maximize=maximize, **options)
        for i, (a, b) in enumerate(zip(plain, exact, strict=True)):
            for x, y, z in zip(
                (self.values[i], self.exp_avgs[i], self.exp_avg_sqs[i]), a, b, strict=True
            ):
                within_twice(x, y.to(dtype), z)
        assert [step.item() for step in self.steps] == [step + 1 for step in steps]
        for before, weight, values, case in zip(
            weights, self.weights, self.values, self.cases, strict=False
        ):
            _, _, inside = places(*case)
            assert torch.equal(
                bits(gather(weight, case))[inside], bits(values.to(weight.dtype))[inside]
            )
            assert torch.equal(
                bits(weight)[~selected_mask(case)], bits(before)[~selected_mask(case)]
            )


@pytest.mark.parametrize("name", [name for name in CASES if name != "blocks-tiled"])
def test_every_layout(name):
    Problem([name]).check_step()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_every_mix_of_dtypes(dtype, weight_dtype):
    Problem(
        ["rows", "columns", "blocks-ragged", "entries"], [(5,)], dtype, weight_dtype
    ).check_step()


def test_many_tensors_of_every_kind_in_one_call():
    """Several chunks, tensors without entries, a scalar, and two tensors that share a group."""
    names = [
        "rows-wide",
        "rows",
        "rows-empty",
        "columns",
        "blocks-ragged",
        "blocks-odd",
        "entries-many",
    ]
    problem = Problem([*names, "entries-empty"], [(2500,), (), (0, 3), (40, 8)])
    problem.weights[0] = problem.weights[0].float()
    for _ in range(2):
        problem.check_step()


@pytest.mark.parametrize(
    "options", [{"maximize": True}, {"grad_scale": 1024.0}, {"grad_scale": 3.0, "maximize": True}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_scaled_and_maximised(options, dtype):
    problem = Problem(["rows", "blocks-ragged"], [(5,)], dtype)
    if "grad_scale" in options and dtype != torch.float16:
        problem.grads = [grad * options["grad_scale"] for grad in problem.grads]
    problem.check_step(**options, found_inf=torch.zeros(1, device=DEVICE))


@pytest.mark.parametrize("beta1", [0.5, 0.3, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_beta1(dtype, beta1):
    """exp_avg starts from its nearer end, as torch.lerp does: with beta1 = 0 it is the gradient,
    however large it was.
    """
    problem = Problem(["rows", "entries"], [(1030,)], dtype)
    problem.hyper["beta1"] = [beta1] * 2 + [0.9]
    for exp_avg in problem.exp_avgs:
        exp_avg.mul_(1000)
    problem.check_step()
    for exp_avg, grad in zip(problem.exp_avgs[:2], problem.grads, strict=False):
        assert torch.equal(exp_avg, grad) == (beta1 == 0)


def test_lr_is_read_from_tensors():
    problem, want = Problem(["rows", "entries"], [(5,)]), Problem(["rows", "entries"], [(5,)])
    for a, b in zip(
        (*problem.tensors(), *problem.grads), (*want.tensors(), *want.grads), strict=True
    ):
        a.copy_(b)
    lrs = [torch.full((1,) * (i % 2), 0.5 + i, device=DEVICE) for i in range(3)]
    problem.hyper["lr"], want.hyper["lr"] = [1e3] * 3, [0.5, 1.5, 2.5]
    problem.step(lrs=lrs)
    want.step()
    assert all(torch.equal(a, b) for a, b in zip(problem.tensors(), want.tensors(), strict=True))


def test_agrees_with_torch_adamw():
    problem = Problem(
        ["rows", "columns", "blocks", "entries"], [(7, 3)], torch.float64, torch.float64
    )
    for state in (problem.exp_avgs, problem.exp_avg_sqs, problem.steps):
        for tensor in state:
            tensor.zero_()
    problem.hyper = {name: [x] * len(problem.values) for name, x in HYPER.items()}
    parameters = [torch.nn.Parameter(values.clone()) for values in problem.values]
    options = {name: HYPER[name] for name in ("lr", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(parameters, betas=(HYPER["beta1"], HYPER["beta2"]), **options)
    for _ in range(5):
        for parameter, grad in zip(parameters, problem.grads, strict=True):
            parameter.grad = grad.normal_()
        optimizer.step()
        problem.step()
    for parameter, values in zip(parameters, problem.values, strict=True):
        torch.testing.assert_close(values, parameter.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_gradient_changes_nothing(bad, dtype):
    problem = Problem(["rows", "entries"], [(1030,)], dtype)
    problem.grads[-1].view(-1)[-1] = bad
    before = [bits(tensor).clone() for tensor in problem.tensors()]
    found_inf = torch.zeros(1, device=DEVICE)
    problem.step(skip_nonfinite=True, found_inf=found_inf)
    problem.step(skip_nonfinite=True)
    assert found_inf.item() == 1
    assert all(
        torch.equal(bits(tensor), old)
        for tensor, old in zip(problem.tensors(), before, strict=True)
    )


def test_found_inf_on_entry_changes_nothing():
    problem = Problem(["columns", "blocks-ragged"], [(3,)])
    before = [bits(tensor).clone() for tensor in problem.tensors()]
    problem.step(found_inf=torch.ones((), device=DEVICE))
    problem.step(found_inf=torch.ones((), device=DEVICE), skip_nonfinite=True)
    assert all(
        torch.equal(bits(tensor), old)
        for tensor, old in zip(problem.tensors(), before, strict=True)
    )


def test_finite_gradients_take_the_step():
    found_inf = torch.zeros(1, device=DEVICE)
    problem = Problem(["rows", "columns"], [(3,)], torch.bfloat16)
    problem.grads[0].view(-1)[0] = torch.finfo(torch.bfloat16).max
    problem.exp_avg_sqs[0].zero_()
    steps = [step.item() for step in problem.steps]
    problem.step(skip_nonfinite=True, found_inf=found_inf)
    assert found_inf.item() == 0 and [step.item() for step in problem.steps] == [
        step + 1 for step in steps
    ]


def test_strided_and_unaligned_tensors():
    problem = Problem(
        ["rows", "columns", "blocks-ragged", "entries", "entries-many"], [(8, 3, 4, 2), (16,)]
    )
    problem.weights = [transposed(weight) for weight in problem.weights]
    problem.values[-1] = random(17)[1:]
    problem.grads = [torch.stack([grad, grad], -1)[..., 0] for grad in problem.grads]
    for state in (problem.values, problem.exp_avgs, problem.exp_avg_sqs):
        state[-2] = state[-2].contiguous(memory_format=torch.channels_last)
    problem.check_step()


def test_weight_offsets_past_two_to_the_31():
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # pages that nobody touches cost nothing
    )
    try:
        weight = torch.empty(3, 2**30 + 7, dtype=torch.float16, device=DEVICE)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    problem = Problem(["entries", "columns-one-column"])
    columns = weight.size(1)
    problem.weights, problem.kinds, problem.blocks = (
        [weight, weight],
        ["entries", "blocks"],
        [1, 1, 2, 3],
    )
    problem.indices = [
        torch.tensor([3 * columns - 1, 2 * columns + 5]),
        torch.tensor([[0, columns // 3]]),
    ]
    problem.indices = [index.to(DEVICE) for index in problem.indices]
    for state in (problem.values, problem.grads, problem.exp_avgs, problem.exp_avg_sqs):
        state[:] = [random(2).square(), random(1, 2, 3).square()]
    problem.step()
    assert torch.equal(weight[2, [columns - 1, 5]], problem.values[0].half())
    last = columns // 3 * 3
    assert torch.equal(weight[:2, last:], problem.values[1][0, :, : columns - last].half())


def test_launches_do_not_grow_with_the_number_of_tensors(monkeypatch):
    launches = []
    for name in ("_nonfinite_kernel", "_steps_kernel", "_masked_adamw_kernel"):
        kernel = getattr(masked_adamw, name)
        counted = type(
            "Counted", (), {"__getitem__": lambda _, grid, k=kernel: launches.append(k) or k[grid]}
        )()
        monkeypatch.setattr(masked_adamw, name, counted)
    for count in (1, 12):
        launches.clear()
        Problem(["rows"] * count, [(16,)] * count).step(skip_nonfinite=True)
        # For rows and for plain parameters: check and update; and the steps.
        assert len(launches) == 5


def test_bad_input_is_named():
    def fails(error, message, **changes):
        problem = Problem(["rows"], [(2,)])
        for name, change in changes.items():
            setattr(problem, name, change(getattr(problem, name)))
        with pytest.raises(error, match=message):
            problem.step()

    fails(ValueError, "grads must have one item for each of 2 values, got 1", grads=lambda x: x[:1])
    fails(ValueError, r"exp_avgs\[1\] must have the shape", exp_avgs=lambda x: [x[0], x[1][:1]])
    fails(
        TypeError,
        r"exp_avg_sqs\[0\] must have the dtype.*bfloat16",
        exp_avg_sqs=lambda x: [x[0].bfloat16(), x[1]],
    )
    fails(TypeError, r"steps\[1\] must be one float32.*int64", steps=lambda x: [x[0], x[1].long()])
    fails(ValueError, r"values\[0\] must be \[3, 14\]", weights=lambda x: [random(7, 14)])
    fails(ValueError, r"weights\[0\] must be a \[rows, columns\]", weights=lambda x: [random(7)])
    fails(ValueError, "kind must be one of", kinds=lambda x: ["lines"])


class Varied(Problem):
    """Some tensors have ages, factors and origins of their entries, by `what`; every third has
    none.
    """

    def __init__(self, what, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.what, self.varied = what, {}
        none = [torch.empty(0, device=DEVICE) for _ in self.values]
        has = [i % 3 != 2 and value.numel() > 0 for i, value in enumerate(self.values)]
        if "aged" in what:
            draw = [
                torch.randint(3, v.shape, dtype=torch.uint8, device=DEVICE) for v in self.values
            ]
            births = [torch.tensor([-5.0, -2.0, i + 0.0], device=DEVICE) for i in range(len(has))]
            self.varied["generations"] = [d if h else n for d, h, n in zip(draw, has, none)]
            self.varied["births"] = [b if h else n for b, h, n in zip(births, has, none)]
        if "scaled" in what:
            shapes = [v.shape[:1] if "by row" in what else v.shape for v in self.values]
            draw = [torch.rand(shape, device=DEVICE) for shape in shapes]
            self.varied["factors"] = [d if h else n for d, h, n in zip(draw, has, none)]
        if "origin" in what:
            draw = [torch.randn_like(v).bfloat16() for v in self.values]
            self.varied["origins"] = [d if h else n for d, h, n in zip(draw, has, none)]

    def step(self, **options):
        super().step(**self.varied, **options)

    def _given(self, name, i):
        tensors = self.varied.get(name)
        return None if tensors is None or not tensors[i].numel() else tensors[i]

    def _expected(self, i, math, grad_scale, maximize):
        p, g = self.values[i].to(math), self.grads[i].to(math)
        lr, beta1, beta2, eps, weight_decay = (self.hyper[name][i] for name in HYPER)
        _, m, v = super()._expected(i, math, grad_scale, maximize)
        age = torch.full(p.shape, self.steps[i].item() + 1, dtype=torch.float64, device=DEVICE)
        generation, factor = self._given("generations", i), self._given("factors", i)
        origin = self._given("origins", i)
        if generation is not None:
            age -= self.varied["births"][i].double()[generation.long()]
        factor = torch.ones(()) if factor is None else factor
        factor = factor.to(g.device, math)
        factor = factor.view([*factor.shape, *[1] * (p.dim() - factor.dim())])
        origin = torch.zeros_like(p) if origin is None else origin.to(math)
        step_size = (lr / (1 - beta1**age)).to(math) * factor
        root = v.sqrt() / (1 - beta2**age).sqrt().to(math) + eps
        p = p - (p - origin) * (factor * (lr * weight_decay)) - step_size * m / root
        return p, m, v


@pytest.mark.parametrize(
    "what", ["aged", "scaled", "scaled by row", "origin", "aged scaled by row origin"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ages_factors_and_origins(what, dtype):
    names = ["rows", "columns", "blocks-ragged", "entries"]
    Varied(what, names, [(2100,), (3, 4), (), (7,)], dtype).check_step()


def test_they_go_with_scale_and_the_look_at_the_gradients():
    problem = Varied("aged scaled origin", ["rows", "entries"], [(5,)])
    problem.check_step(grad_scale=4.0, maximize=True, skip_nonfinite=True)
    problem.grads[0].view(-1)[3] = float("inf")
    before = [t.clone() for t in problem.tensors()]
    problem.step(skip_nonfinite=True)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.tensors()))
