"""torch's hook after steps, where models and optimisers die at any moment."""

import functools
import gc
import sys
import threading

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import sparse_ft as sft
from sparse_ft.nn import step_hook
from sparse_ft.nn.step_hook import StepHook

LONGEST = 60  # seconds that a thread is waited for


def plain_optimizer():
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    return torch.optim.SGD([parameter], lr=0.1)


@pytest.fixture
def hook():
    hook = StepHook(lambda *_: None)
    yield hook
    hook.keep(False)
    assert not hook.is_there


def test_it_stays_where_nobody_needs_it_any_more_within_a_step(hook):
    later = []
    first = register_optimizer_step_post_hook(lambda *_: hook.keep(False))
    hook.keep(True)
    last = register_optimizer_step_post_hook(lambda *_: later.append(hook.is_there))
    try:
        plain_optimizer().step()
    finally:
        first.remove()
        last.remove()
    assert later == [True]
    hook.keep(False)
    assert not hook.is_there


def test_it_stays_while_another_thread_steps(hook):
    begun, may_end = threading.Event(), threading.Event()
    optimizer = plain_optimizer()

    def wait(*_):
        begun.set()
        may_end.wait(LONGEST)

    optimizer.register_step_post_hook(wait)
    hook.keep(True)
    thread = threading.Thread(target=optimizer.step)
    thread.start()
    try:
        assert begun.wait(LONGEST)
        hook.keep(False)
        assert hook.is_there
    finally:
        may_end.set()
        thread.join(LONGEST)
    assert not thread.is_alive()
    hook.keep(False)
    assert not hook.is_there


def test_a_collection_while_torch_takes_it_leaves_one(monkeypatch):
    calls = []
    hook = StepHook(lambda *_: calls.append(1))

    def register(call):
        monkeypatch.setattr(step_hook, "register_optimizer_step_post_hook", real)
        hook.keep(True)  # as a finalizer does
        return real(call)

    real = register_optimizer_step_post_hook
    monkeypatch.setattr(step_hook, "register_optimizer_step_post_hook", register)
    hook.keep(True)
    plain_optimizer().step()
    hook.keep(False)
    plain_optimizer().step()
    assert calls == [1]


def test_where_torch_does_not_show_its_steps_it_stays(hook, monkeypatch):
    hook.keep(True)
    monkeypatch.setattr(step_hook, "_STEP", None)
    hook.keep(False)
    assert hook.is_there
    monkeypatch.undo()


def test_optimisers_may_die_while_a_step_tells_of_itself():
    models = [nn.Sequential(nn.Linear(4, 4)) for _ in range(3)]
    optimizers = []
    for model in models:
        sft.convert(model, {"0.weight": sft.Rows([1])})
        optimizer = sft.SelectiveAdamW(model.parameters())
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        optimizers.append(optimizer)
    told = set()

    def drop(number):
        told.add(number)
        optimizers.clear()
        gc.collect()

    for number, model in enumerate(models):
        model[0].after_foreign_step = functools.partial(drop, number)
    del optimizer
    plain_optimizer().step()
    assert told == {0, 1, 2}


def test_first_steps_and_conversions_in_several_threads():
    """Each looks through all that are known, while others add to them."""

    def work():
        try:
            for _ in range(25):
                model = nn.Sequential(nn.Linear(4, 4))
                sft.convert(model, {"0.weight": sft.Rows([1])})
                kept.append(model)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
                model(torch.ones(1, 4)).sum().backward()
                optimizer.step()
                kept.append(optimizer)
        except RuntimeError as error:
            errors.append(error)

    kept, errors, interval = [], [], sys.getswitchinterval()
    threads = [threading.Thread(target=work) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONGEST)
    finally:
        sys.setswitchinterval(interval)
    assert not errors
