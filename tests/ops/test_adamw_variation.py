"""masked_adamw_ whose entries have ages, factors and origins of their own, against torch's AdamW.

The oracle has one fp64 `torch.optim.AdamW` for the entries of one age and factor, on what they are
away from their origin; plain PyTorch in the op's own dtype is the same in that dtype.
"""

import oracle
import pytest
import torch
from adamw_problem import HYPER, Problem, assert_refused, snapshot, unchanged

from sparse_ft import ops
from sparse_ft.ops._registry import OPS

FACTORS = 0.0, 0.25, 1.0, 3.0
VARIED = ("aged",), ("scaled",), ("by row",), ("origin",), ("aged", "scaled", "origin")


class Varied:
    """A `Problem` whose tensors vary; `rejoin` is what a new selection does to some entries."""

    def __init__(self, what, **settings):
        torch.manual_seed(7)
        self.problem = problem = Problem(**settings)
        self.what = what
        self.generations = [torch.zeros_like(v, dtype=torch.uint8) for v in problem.values]
        self.births = [torch.zeros(1) for _ in problem.values]
        self.factors = [self._factor(value) for value in problem.values]
        self.origins = [(torch.randn(v.shape) / 4).to(v.dtype) for v in problem.values]

    def _factor(self, value):
        shape = value.shape[:1] if "by row" in self.what else value.shape
        return torch.tensor(FACTORS)[torch.randint(len(FACTORS), shape)]

    @property
    def keywords(self):
        keywords = {}
        if "aged" in self.what:
            keywords.update(generations=self.generations, births=self.births)
        if "scaled" in self.what or "by row" in self.what:
            keywords["factors"] = self.factors
        if "origin" in self.what:
            keywords["origins"] = self.origins
        return keywords

    def rejoin(self, share=0.4):
        """Some entries of each tensor begin anew; returns which."""
        joined = []
        for i, value in enumerate(self.problem.values):
            mask = torch.rand(value.shape) < share
            joined.append(mask)
            self.births[i] = torch.cat((self.births[i], self.problem.steps[i].reshape(1)))
            self.generations[i][mask] = len(self.births[i]) - 1
            for moments in (self.problem.exp_avgs, self.problem.exp_avg_sqs):
                moments[i][mask] = 0
        return joined

    def step(self, adamw_, **keywords):
        self.problem.step(adamw_, **self.keywords, **keywords)


class Dense:
    """The same by torch's own optimiser, in `dtype`."""

    def __init__(self, varied, dtype):
        self.varied, self.dtype = varied, dtype
        self.values = [v.clone().to(dtype) for v in varied.problem.values]
        self.parts = [[] for _ in self.values]  # (mask, its delta, its optimiser)
        for i, value in enumerate(self.values):
            self._begin(i, torch.ones_like(value, dtype=torch.bool))

    def _origin(self, i):
        if "origin" in self.varied.what:
            return self.varied.origins[i].to(self.dtype)
        return torch.zeros_like(self.values[i])

    def _factor(self, i):
        if "factors" not in self.varied.keywords:
            return torch.ones_like(self.values[i])
        factor, value = self.varied.factors[i], self.values[i]
        ones = [1] * (value.dim() - factor.dim())
        return factor.view([*factor.shape, *ones]).expand_as(value)

    def _begin(self, i, mask):
        hyper = {name: self.varied.problem.hyper[name][i] for name in HYPER}
        for factor in FACTORS:
            part = mask & (self._factor(i) == factor)
            delta = (self.values[i] - self._origin(i))[part].clone()
            optimizer = torch.optim.AdamW(
                [delta.requires_grad_()],
                lr=hyper["lr"] * factor,
                betas=(hyper["beta1"], hyper["beta2"]),
                eps=hyper["eps"],
                weight_decay=hyper["weight_decay"],
                foreach=False,
            )
            self.parts[i].append((part, delta, optimizer))

    def rejoin(self, joined):
        for i, mask in enumerate(joined):
            left = []
            for part, delta, optimizer in self.parts[i]:
                stays = ~mask[part]
                state = optimizer.state[delta]
                kept = delta.detach()[stays].clone().requires_grad_()
                optimizer.param_groups[0]["params"] = [kept]
                moments = {name: state[name][stays] for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state = {kept: {"step": state["step"], **moments}}
                left.append((part & ~mask, kept, optimizer))
            self.parts[i] = left
            self._begin(i, mask)

    def step(self):
        for i, grad in enumerate(self.varied.problem.grads):
            for part, delta, optimizer in self.parts[i]:
                delta.grad = grad.to(self.dtype)[part]
                optimizer.step()
                self.values[i][part] = delta.detach() + self._origin(i)[part]


def run(what, adamw_, steps=6, **settings):
    varied = Varied(what, **settings)
    exact, plain = Dense(varied, torch.float64), Dense(varied, varied.problem.values[0].dtype)
    for number in range(steps):
        varied.problem.new_grads()
        varied.step(adamw_)
        exact.step()
        plain.step()
        if "aged" in what and number in (1, 3):
            joined = varied.rejoin()
            exact.rejoin(joined)
            plain.rejoin(joined)
    return varied, exact, plain


@pytest.mark.parametrize("what", VARIED, ids=" ".join)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=oracle.name_of)
def test_it_is_adamw_of_each_age_factor_and_origin(what, adamw_, dtype):
    varied, exact, plain = run(what, adamw_, dtype=dtype)
    problem = varied.problem
    for value, want, by_plain in zip(problem.values, exact.values, plain.values, strict=True):
        slack = 8 * torch.finfo(dtype).eps * max(1.0, want.abs().max().item())
        oracle.assert_as_good_as_plain(value, want, by_plain, slack)
    for weight, value, layout in zip(problem.weights, problem.values, problem.layouts):
        shown = oracle.gather(weight, layout)
        padding = oracle.padding(layout, weight.shape)
        assert torch.equal(shown[~padding], value.to(weight.dtype)[~padding])


@pytest.mark.parametrize("what", VARIED, ids=" ".join)
@pytest.mark.parametrize(
    "dtype, stored",
    [
        (torch.float32, "plain"),
        (torch.float64, "plain"),
        (torch.bfloat16, "plain"),
        (torch.float16, "plain"),
        (torch.float32, "8 bits"),
        (torch.bfloat16, "by chance"),
        (torch.bfloat16, "corrected"),
        (torch.bfloat16, "8 bits corrected"),
        (torch.float16, "8 bits by chance"),
    ],
    ids=str,
)
def test_the_compiled_part_has_the_bits_of_the_reference(what, dtype, stored):
    ends = []
    for adamw_ in (OPS["masked_adamw_"].backends["reference"], ops.masked_adamw_):
        varied = Varied(what, dtype=dtype, stored=stored, plain=((1500,), (3, 4)))
        for number in range(4):
            varied.problem.new_grads()
            varied.step(adamw_, maximize=number == 3, grad_scale=torch.tensor(4.0))
            if "aged" in what and number in (0, 2):
                varied.rejoin()
        ends.append(varied.problem.state)
    for ours, reference in zip(*ends, strict=True):
        if dtype == torch.float64:  # torch's own powers
            torch.testing.assert_close(ours, reference, rtol=1e-14, atol=1e-15)
        else:
            assert torch.equal(ours, reference)


def test_entries_of_one_age_step_as_without_generations(adamw_):
    torch.manual_seed(1)
    plain = Problem()
    torch.manual_seed(1)
    aged = Problem()
    generations = [torch.full_like(v, 3, dtype=torch.uint8) for v in aged.values]
    births = [torch.tensor([9.0, 9.0, 9.0, 0.0]) for _ in aged.values]
    for _ in range(3):
        plain.step(adamw_)
        aged.step(adamw_, generations=generations, births=births)
    assert unchanged(aged.state, plain.state)


def test_a_factor_of_zero_leaves_an_entry_alone_and_only_that(adamw_):
    varied = Varied(("scaled",))
    before = snapshot(varied.problem.values)
    varied.step(adamw_)
    for value, old, factor in zip(varied.problem.values, before, varied.factors):
        moves = old != 0  # padding is 0
        assert torch.equal((value == old)[moves], (factor == 0)[moves])


def test_decay_towards_the_origin_stops_there(adamw_):
    """Without a gradient a value at its origin stays, bit for bit, and others come nearer."""
    problem = Problem(eps=1.0)
    problem.grads = [torch.zeros_like(g) for g in problem.grads]
    origins = [v.clone() for v in problem.values]
    for origin in origins:
        origin.view(-1)[::2] += 1
    before = snapshot(problem.values)
    problem.step(adamw_, origins=origins)
    for value, old, origin in zip(problem.values, before, origins):
        assert torch.equal(value[old == origin], old[old == origin])
        away = old != origin
        assert ((value - origin).abs() < (old - origin).abs())[away].all()


@pytest.mark.parametrize("count", [2, 9, 17, 33, 100, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=oracle.name_of)
def test_however_many_generations_there_are(count, dtype):
    """Tables of one vector, of two, and of more; a last line that is not whole."""
    torch.manual_seed(count)
    shape = (1003,)
    generation = torch.randint(count, shape, dtype=torch.uint8)
    births = torch.arange(count, dtype=torch.float32)
    hyper = {name: [number] for name, number in HYPER.items()}
    given = [torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)]
    given += [torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)]
    ends = []
    for adamw_ in (ops.masked_adamw_, OPS["masked_adamw_"].backends["reference"]):
        state = [tensor.clone() for tensor in given] + [torch.tensor(300.0)]
        for _ in range(2):
            lists = [*([tensor] for tensor in state), [], [], [], []]
            adamw_(*lists, generations=[generation], births=[births], **hyper)
        ends.append(state)
    for ours, reference in zip(*ends, strict=True):
        # in float64 powers are torch's own
        slack = 1e-14 if dtype == torch.float64 else 0
        torch.testing.assert_close(ours, reference, rtol=slack, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_per_row_factors_of_every_kind_and_many_pieces(threads):
    """Runs of one factor end anywhere in a piece, and a piece anywhere in a run."""
    shape = 37, 91
    torch.manual_seed(2)
    values, grads = torch.randn(shape), torch.randn(shape)
    row = torch.rand(shape[0])
    hyper = {name: [number] for name, number in HYPER.items()}
    ends = []
    torch.set_num_threads(threads)
    for factor in (row, row[:, None].expand(shape).contiguous()):
        state = [values.clone(), torch.zeros(shape), torch.zeros(shape), torch.zeros(())]
        value, exp_avg, exp_avg_sq, step = state
        for _ in range(2):
            ops.masked_adamw_(
                [value], [grads], [exp_avg], [exp_avg_sq], [step], factors=[factor], **hyper
            )
        ends.append(state)
    torch.set_num_threads(1)
    assert unchanged(*ends)


@pytest.mark.parametrize(
    "keywords, error, message",
    [
        (dict(generations=[torch.zeros(5)], births=[torch.zeros(1)]), ValueError, "generations: "),
        (dict(generations=[torch.zeros(5).byte()]), ValueError, "births: expected with"),
        (dict(births=[torch.zeros(1)]), ValueError, "births: expected with"),
        (
            dict(generations=[torch.zeros(5).byte()], births=[torch.zeros(257)]),
            ValueError,
            "births: expected at most 256, got 257",
        ),
        (
            dict(generations=[torch.zeros(5).byte()], births=[torch.zeros(1).long()]),
            ValueError,
            "births: .*torch.int64",
        ),
        (dict(factors=[torch.ones(4)]), ValueError, r"factors: .*\(5,\).*\(4,\)"),
        (dict(factors=[torch.ones(5).half()]), ValueError, "factors: .*torch.float16"),
        (dict(origins=[torch.ones(5).long()]), TypeError, "origins: .*torch.int64"),
        (dict(origins=[torch.ones(1, 5)]), ValueError, r"origins: .*\(1, 5\)"),
        (dict(factors=[]), ValueError, "factors: expected None or 1 items"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(adamw_, keywords, error, message):
    assert_refused(Problem(kinds=(), plain=((5,),)), adamw_, error, message, **keywords)


def test_opcheck():
    varied = Varied(("aged", "scaled", "origin"))
    torch.library.opcheck(
        torch.ops.sparse_ft.masked_adamw_.default,
        varied.problem.arguments,
        {**varied.problem.hyper, **varied.keywords},
    )
