"""The learning-rate grid behind methods.LEARNING_RATES: validation accuracy of each method at each rate."""

from dataclasses import replace

from bench.demo.runner import run_apart
from bench.demo.train import run

GRID = {  # four rates a method, each twice or so the one before
    "full": (2e-5, 5e-5, 1e-4, 2e-4),
    "lora": (5e-4, 1e-3, 2e-3, 4e-3),
    "head": (3e-3, 1e-2, 3e-2, 1e-1),
    "ours": (5e-4, 1e-3, 2e-3, 4e-3),
}


def tune(task, methods, settings):
    """Print {method: (best rate, {rate: validation accuracy})} as it goes; the test split is never looked at."""
    for method in methods:
        found = {}
        for rate in GRID[method.kind]:
            row = run_apart(run, task, method, replace(settings, lr={"": rate}, evaluate="validation"))
            found[rate] = round(row["accuracy"], 4)
        best = max(found, key=found.get)
        print(f'"{method.key}": ({best:g}, {found}),', flush=True)
