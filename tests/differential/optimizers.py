"""The optimisers of the differential test.

What a selective run uses, and what the dense run beside it uses in its place.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

import sparse_ft as sft

EPS = 1e-2  # no gradient is so small that its rounding decides where an entry goes


class Family(NamedTuple):
    """make: the dense optimiser on parameters, which never decays by itself. decoupled: weight
    decay as in AdamW.
    """

    make: Callable
    decoupled: bool
    lr: float


def adamw(params, lr, **options):
    return torch.optim.AdamW(params, lr, eps=EPS, weight_decay=0, foreach=False, **options)


FAMILIES = {
    "adamw": Family(adamw, True, 0.03),
    "adamw maximize": Family(
        lambda ps, lr, **options: adamw(ps, lr, maximize=True, **options), True, 0.03
    ),
    "adam": Family(lambda ps, lr: torch.optim.Adam(ps, lr, eps=EPS, foreach=False), False, 0.03),
    "sgd": Family(lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.9, foreach=False), False, 0.05),
    "nesterov": Family(
        lambda ps, lr: torch.optim.SGD(ps, lr, momentum=0.9, nesterov=True, foreach=False),
        False,
        0.05,
    ),
    "rmsprop": Family(
        lambda ps, lr: torch.optim.RMSprop(ps, lr, eps=EPS, foreach=False), False, 0.01
    ),
    "adagrad": Family(
        lambda ps, lr: torch.optim.Adagrad(ps, lr, eps=EPS, foreach=False), False, 0.05
    ),
    "plain sgd": Family(lambda ps, lr: torch.optim.SGD(ps, lr, foreach=False), False, 0.1),
}


class WritesThroughData(torch.optim.Optimizer):
    """Plain SGD of the kind found in the wild.

    It writes through `.data`, which leaves version counters unmoved.
    """

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad.data, alpha=-group["lr"])
        return loss


class MasterCopies:
    """AdamW on copies of the parameters, which it writes back through `.data`, as mixed-precision
    trainers do.
    """

    def __init__(self, params, lr, **options):
        self.parameters = [p for p in params if p.requires_grad]
        self.masters = [torch.nn.Parameter(p.detach().clone()) for p in self.parameters]
        self.inner = torch.optim.AdamW(self.masters, lr, eps=EPS, **options)
        self.param_groups = self.inner.param_groups

    def zero_grad(self, set_to_none=True):
        for p in self.parameters:
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.zero_()

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for p, master in zip(self.parameters, self.masters, strict=True):
            master.grad = None if p.grad is None else p.grad.clone()
        self.inner.step()
        for p, master in zip(self.parameters, self.masters, strict=True):
            p.data.copy_(master.data)
        return loss

    def state_dict(self):
        return {
            "inner": self.inner.state_dict(),
            "masters": [master.detach().clone() for master in self.masters],
        }

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        self.param_groups = self.inner.param_groups
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.data.copy_(saved)


class Ours(NamedTuple):
    """make: (parameters, lr, **options) -> the optimiser of the selective run. decays: takes
    weight_decay.
    """

    family: str
    make: Callable
    decays: bool = True
    in_backward: bool = False
    scales: bool = True  # runs under a GradScaler
    master: str | None = (
        None  # the dtype of the dense run's copy of the weights, where it is not that of values
    )


def selective(**own):
    return lambda ps, lr, **options: sft.SelectiveAdamW(
        ps, lr, eps=EPS, **own, **{"weight_decay": 0.0, **options}
    )


def torchs(cls, **own):
    return lambda ps, lr, **options: cls(ps, lr, **own, **{"weight_decay": 0.0, **options})


AdamW, Adam, SGD = torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD
OPTIMIZERS = {
    "SelectiveAdamW": Ours("adamw", selective()),
    "SelectiveAdamW skip_nonfinite": Ours("adamw", selective(skip_nonfinite=True)),
    "SelectiveAdamW in_backward": Ours(
        "adamw", selective(in_backward=True), in_backward=True, scales=False
    ),
    "SelectiveAdamW maximize": Ours("adamw maximize", selective(maximize=True)),
    "SelectiveAdamW correction": Ours("adamw", selective(correction=True), master="fp32"),
    "SelectiveAdamW stochastic_rounding": Ours("adamw", selective(stochastic_rounding=True)),
    "SelectiveAdamW optim_bits=8": Ours("adamw", selective(optim_bits=8)),
    "AdamW": Ours("adamw", torchs(AdamW, eps=EPS)),
    "AdamW foreach": Ours("adamw", torchs(AdamW, eps=EPS, foreach=True)),
    "AdamW fused": Ours("adamw", torchs(AdamW, eps=EPS, fused=True)),
    "Adam fused": Ours("adam", torchs(Adam, eps=EPS, fused=True)),
    "SGD": Ours("sgd", torchs(SGD, momentum=0.9)),
    "SGD foreach": Ours("sgd", torchs(SGD, momentum=0.9, foreach=True)),
    "SGD fused": Ours("sgd", torchs(SGD, momentum=0.9, fused=True)),
    "SGD nesterov": Ours("nesterov", torchs(SGD, momentum=0.9, nesterov=True)),
    "RMSprop": Ours("rmsprop", torchs(torch.optim.RMSprop, eps=EPS)),
    "Adagrad": Ours("adagrad", torchs(torch.optim.Adagrad, eps=EPS)),
    "master copies": Ours(
        "adamw",
        lambda ps, lr, **options: MasterCopies(ps, lr, **{"weight_decay": 0.0, **options}),
        scales=False,
    ),
    "writes through .data": Ours(
        "plain sgd", lambda ps, lr: WritesThroughData(ps, lr), decays=False
    ),
}
