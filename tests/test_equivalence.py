"""Training with a selection is dense training with the gradient masked and decay applied to the selected entries only."""

import functools

import pytest
import torch
import transformers

import sparse_ft as sft

from .helpers import llama

STEPS, EARLY = 200, 20
DECAY = 0.1


@pytest.fixture(autouse=True)
def one_thread():
    """The model is tiny: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class WritesThroughData(torch.optim.Optimizer):
    """Plain SGD of the kind found in the wild: it writes through `.data`, which leaves every version counter unmoved."""

    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr))

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad.data, alpha=-group["lr"])


def adafactor(params):
    return transformers.Adafactor(params, lr=3e-3, scale_parameter=False, relative_step=False, weight_decay=DECAY)


# family -> the dense run, as a function of (plan, dtype, steps, snapshots=...)
DENSE = {
    "adamw": functools.partial(llama.train_dense, make_optimizer=lambda ps: torch.optim.AdamW(ps, 3e-3, weight_decay=0, foreach=False),
                               weight_decay=DECAY),
    "adam": functools.partial(llama.train_dense, make_optimizer=lambda ps: torch.optim.Adam(ps, 3e-3, foreach=False),
                              weight_decay=1e-3, decoupled=False),
    "sgd": functools.partial(llama.train_dense, make_optimizer=lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, foreach=False),
                             weight_decay=1e-3, decoupled=False),
    "plain sgd": functools.partial(llama.train_dense, make_optimizer=lambda ps: torch.optim.SGD(ps, 0.3, foreach=False)),
    "adafactor": functools.partial(llama.train_compact, make_optimizer=adafactor),
}

# optimiser -> its family and its constructor on model.parameters()
OPTIMIZERS = {
    "AdamW": ("adamw", lambda ps: torch.optim.AdamW(ps, 3e-3, weight_decay=DECAY, foreach=False)),
    "AdamW foreach": ("adamw", lambda ps: torch.optim.AdamW(ps, 3e-3, weight_decay=DECAY, foreach=True)),
    "AdamW fused": ("adamw", lambda ps: torch.optim.AdamW(ps, 3e-3, weight_decay=DECAY, fused=True)),
    "Adam": ("adam", lambda ps: torch.optim.Adam(ps, 3e-3, weight_decay=1e-3)),
    "Adam fused": ("adam", lambda ps: torch.optim.Adam(ps, 3e-3, weight_decay=1e-3, fused=True)),
    "SGD": ("sgd", lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=1e-3)),
    "SGD fused": ("sgd", lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9, weight_decay=1e-3, fused=True)),
    "writes through .data": ("plain sgd", lambda ps: WritesThroughData(ps, 0.3)),
    "Adafactor": ("adafactor", adafactor),
}


def selective_adamw(params):
    return sft.SelectiveAdamW(params, 3e-3, weight_decay=DECAY)


@functools.cache
def dense(structure, family, dtype):
    """The dense run's weights after EARLY and after STEPS steps; one run serves every optimiser of the family."""
    return DENSE[family](llama.plan_of(structure), dtype, STEPS, snapshots=(EARLY,))


def selective(structure, make_optimizer, dtype):
    """The selective run's weights at the same steps, after checks that it learnt and touched nothing else."""
    plan, model = llama.plan_of(structure), llama.tiny_llama(dtype)
    sft.convert(model, plan)
    losses, weights = llama.train(model, make_optimizer(model.parameters()), STEPS, plan, snapshots=(EARLY, STEPS))
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5]), "the model did not learn, so the comparison shows nothing"
    llama.assert_unselected_untouched(model, plan, dtype)
    return weights


def check(structure, family, make_optimizer):
    exact = dense(structure, family, torch.float64)
    assert llama.furthest(selective(structure, make_optimizer, torch.float64)[STEPS], exact[STEPS]) < 1e-9
    dense32, selective32 = dense(structure, family, torch.float32), selective(structure, make_optimizer, torch.float32)
    assert llama.furthest(selective32[EARLY], dense32[EARLY]) < 1e-6
    for far in (llama.furthest, llama.distance):
        assert far(selective32[STEPS], exact[STEPS]) <= 2 * far(dense32[STEPS], exact[STEPS])


@pytest.mark.parametrize("structure", llama.STRUCTURES)
def test_each_structure_with_selective_adamw(structure):
    check(structure, "adamw", selective_adamw)


@pytest.mark.parametrize("name", ["SelectiveAdamW", *OPTIMIZERS])
def test_each_optimizer_with_every_structure_in_one_model(name):
    family, make_optimizer = OPTIMIZERS.get(name, ("adamw", selective_adamw))
    check("mixed", family, make_optimizer)
