"""Which tests restate which recipes; and that they run the recipe, and 30 dense steps beside it."""

import contextlib
import functools
from unittest import mock

import torch

from sparse_ft.recipes import Recipe

from .dense_masked import DenseMasked

STEPS = 30


def restates(*names, steps=STEPS):
    """A test in which the plan, and the first steps, of these recipes are those of a dense rule.

    Of a test that has an argument `name`, one run is about that recipe alone. steps: how many
    dense steps it takes at least; 0 for a recipe after which nothing trains.
    """

    def mark(test):
        @functools.wraps(test)
        def run(*args, **kwargs):
            with seen() as (asked, taken):
                result = test(*args, **kwargs)
            wanted = {kwargs["name"]} if kwargs.get("name") in names else set(names)
            assert wanted <= asked, f"never called: {sorted(wanted - asked)}"
            assert len(taken) >= steps, f"{len(taken)} dense steps"
            return result

        run.restates = names
        return run

    return mark


@contextlib.contextmanager
def seen():
    """(names of the recipes that were called, the dense steps that were taken)."""
    asked, taken = set(), []
    call = Recipe.__call__

    def called(recipe, *args, **kwargs):
        asked.add(recipe.name)
        return call(recipe, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(Recipe, "__call__", called))
        for kind in (DenseMasked, torch.optim.AdamW):  # SelectiveAdamW is none of torch's
            stack.enter_context(mock.patch.object(kind, "step", counted(kind.step, taken)))
        yield asked, taken


def counted(step, taken):
    @functools.wraps(step)
    def call(self, *args, **kwargs):
        taken.append(1)
        return step(self, *args, **kwargs)

    return call
