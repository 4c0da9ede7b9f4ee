"""The learning-rate grid behind methods.LEARNING_RATES: validation accuracy of each method at each
rate.
"""

from dataclasses import replace

from bench.runner import run_apart
from demo.train import run

# three rates a method, two or three times the one before, moved until the best was not at an edge
GRID = {
    "reviews": {
        "full": (7.5e-5, 1.5e-4, 3e-4),
        "lora": (1.5e-3, 3e-3, 6e-3),
        "columns@lora": (7.5e-4, 1.5e-3, 3e-3),
        "columns@1%": (1.25e-3, 2.5e-3, 5e-3),
        "entries@lora": (6e-4, 1.25e-3, 2.5e-3),
        "entries@1%": (1.25e-3, 2.5e-3, 5e-3),
        "head": (1.5e-1, 3e-1, 6e-1),
    },
    "digits": {
        "full": (5e-4, 1.5e-3, 5e-3),
        "lora": (1.5e-3, 5e-3, 1.5e-2),
        "columns@lora": (5e-3, 1.5e-2, 5e-2),
        "columns@1%": (1.5e-2, 5e-2, 1.5e-1),
        "entries@lora": (5e-3, 1.5e-2, 5e-2),
        "entries@1%": (1.5e-2, 5e-2, 1.5e-1),
        "head": (1.5e-2, 5e-2, 1.5e-1),
    },
}
UNTRIED = (5e-4, 1.5e-3, 5e-3)  # for structures that the default demo leaves out


def tune(task, methods, settings):
    """Print {method: (best rate, {rate: validation accuracy})} as it goes.

    The test split is never looked at.
    """
    for method in methods:
        found = {}
        for rate in GRID[task.learning_rates].get(method.key, UNTRIED):
            row = run_apart(
                run, task, method, replace(settings, lr={"": rate}, evaluate="validation")
            )
            found[rate] = round(row["accuracy"], 4)
        best = max(found, key=found.get)
        print(f'"{method.key}": ({best:g}, {found}),', flush=True)
