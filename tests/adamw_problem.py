"""A set of tensors to call masked_adamw_ with.

Selections of every kind, written through, and plain parameters.
"""

import oracle
import pytest
import torch

from sparse_ft import ops
from sparse_ft.ops._eight_bit import num_blocks

SHAPE = (17, 22)
HYPER = dict(lr=3e-2, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.1)


def snapshot(tensors):
    return [tensor.clone() for tensor in tensors]


def unchanged(tensors, before):
    return all(torch.equal(_bytes(a), _bytes(b)) for a, b in zip(tensors, before, strict=True))


def _bytes(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def assert_refused(problem, adamw_, error, message, **keywords):
    """A step raises `error`, and has written nothing."""
    before = snapshot(problem.state)
    with pytest.raises(error, match=message):
        problem.step(adamw_, **keywords)
    assert unchanged(problem.state, before)


class Problem:
    """Tensors for one call: a value written through into a weight for each of `kinds`, then `plain`
    parameters.
    """

    def __init__(
        self,
        kinds=oracle.KINDS,
        plain=((5,), (3, 4), ()),
        dtype=torch.float32,
        weight_dtype=None,
        which="some",
        device="cpu",
        form="contiguous",
        stored="plain",
        **hyper,
    ):
        """stored: "plain", "by chance" or "corrected" (values and moments, where their dtype
        allows), or these with moments in 8 bits: "8 bits", "8 bits by chance", "8 bits
        corrected"."""
        weight_dtype = weight_dtype or dtype
        self.layouts = [
            oracle.layout(kind, SHAPE, which, block=(5, 8), device=device) for kind in kinds
        ]
        self.weights = [oracle.matrices(SHAPE, weight_dtype, device)[form] for _ in kinds]
        self.values = [
            ops.gather_selected(w, *layout, dtype=dtype)
            for w, layout in zip(self.weights, self.layouts, strict=True)
        ]
        self.values += [
            torch.randn(shape, dtype=torch.float64).to(device, dtype) for shape in plain
        ]
        self.steps = [torch.zeros((), device=device) for _ in self.values]
        self.exp_avgs, self.exp_avg_sqs = (
            [torch.zeros_like(v) for v in self.values] for _ in range(2)
        )
        hyper = {**HYPER, **hyper}
        self.hyper = {
            name: [
                hyper[name] * (1 + i / 50) if name in ("lr", "eps") else hyper[name]
                for i in range(len(self.values))
            ]
            for name in HYPER
        }
        self.corrections = self.seeds = self.absmaxes = None
        if "by chance" in stored:
            self.seeds = [3 + i for i in range(len(self.values))]
        if "corrected" in stored:
            self.corrections = [torch.zeros_like(v, dtype=torch.int16) for v in self.values]
            self.new_moments(torch.float32)
        if "8 bits" in stored:
            self.absmaxes = [
                torch.zeros(num_blocks(v.numel()), device=device)
                for v in self.values
                for _ in range(2)
            ]
            self.new_moments(torch.uint8)
        self.new_grads()

    def new_moments(self, dtype):
        self.exp_avgs, self.exp_avg_sqs = (
            [torch.zeros_like(v, dtype=dtype) for v in self.values] for _ in range(2)
        )

    def to_channels_last(self):
        """Values, gradients and moments in another order of memory."""
        for name in ("values", "grads", "exp_avgs", "exp_avg_sqs"):
            tensors = [t.to(memory_format=torch.channels_last) for t in getattr(self, name)]
            setattr(self, name, tensors)

    def new_grads(self):
        self.grads = [
            torch.randn(v.shape, dtype=torch.float64).to(v.device, v.dtype) for v in self.values
        ]
        for i, layout in enumerate(self.layouts):
            grad = self.grads[i]
            grad[oracle.padding(layout, SHAPE).to(grad.device)] = 0

    @property
    def state(self):
        storage = *(self.corrections or ()), *(self.absmaxes or ())
        return [
            *self.values,
            *self.exp_avgs,
            *self.exp_avg_sqs,
            *self.steps,
            *self.weights,
            *storage,
        ]

    @property
    def arguments(self):
        kinds, indices = (
            [layout[0] for layout in self.layouts],
            [layout[1] for layout in self.layouts],
        )
        blocks = [n for layout in self.layouts for n in layout[2:]]
        return (
            self.values,
            self.grads,
            self.exp_avgs,
            self.exp_avg_sqs,
            self.steps,
            self.weights,
            kinds,
            indices,
            blocks,
        )

    @property
    def storage(self):
        storage = {"corrections": self.corrections, "seeds": self.seeds, "absmaxes": self.absmaxes}
        return {name: given for name, given in storage.items() if given is not None}

    def step(self, adamw_, **keywords):
        adamw_(*self.arguments, **{**self.hyper, **self.storage, **keywords})

    def torch_optimizer(self, parameters, maximize=False):
        """torch.optim.AdamW on `parameters`, with this problem's hyperparameters."""
        for parameter in parameters:
            parameter.requires_grad_()
        hyper = zip(*(self.hyper[name] for name in HYPER), strict=True)
        groups = [
            dict(params=[p], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
            for p, (lr, beta1, beta2, eps, decay) in zip(parameters, hyper, strict=True)
        ]
        return torch.optim.AdamW(groups, foreach=False, maximize=maximize)
