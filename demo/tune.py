"""What methods.LEARNING_RATES was made by: validation accuracy of each method at each rate."""

from dataclasses import replace

from bench.runner import run_apart
from demo.methods import LEARNING_RATES
from demo.train import run

UNTRIED = (5e-4, 1.5e-3, 5e-3)  # for structures that the default demo leaves out


def rates_of(key, tuned):
    """The rates to try. tuned: {key: (chosen, {rate it was chosen from: accuracy})}."""
    _, tried = tuned.get(key, (None, UNTRIED))
    return list(tried)


def tune(task, methods, settings):
    """Print {method: (best rate, {rate: validation accuracy})} as it goes.

    The test split is never looked at.
    """
    for method in methods:
        found = {}
        for rate in rates_of(method.key, LEARNING_RATES[task.learning_rates]):
            row = run_apart(
                run, task, method, replace(settings, lr={"": rate}, evaluate="validation")
            )
            found[rate] = round(row["accuracy"], 4)
        best = max(found, key=found.get)
        print(f'"{method.key}": ({best:g}, {found}),', flush=True)
