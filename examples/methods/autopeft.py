"""AutoPEFT (Zhou et al., 2024): configurations are drawn, tried, and those kept that none betters.

What is drawn: structure, share and score of a selection. What is judged: validation accuracy and
how many entries train. The paper draws by a Gaussian process; here half of the draws change one
thing of a kept one. python examples/methods/autopeft.py
"""

import copy
import random
from typing import NamedTuple

import small

import sparse_ft as sft

CHOICES: dict[str, tuple] = {
    "structure": ("rows", "columns", "entries", "blocks"),
    "density": (0.02, 0.05, 0.1, 0.3),
    "score": ("random", "magnitude", "gradient", "fisher"),
}
TRIALS = 12
draw = random.Random(0)
base = small.model()
train, validation = small.batches(40), small.batches(8, seed=1)


class Trial(NamedTuple):
    setting: dict
    accuracy: float
    trained: int

    def betters(self, other: "Trial") -> bool:
        as_good = self.accuracy >= other.accuracy and self.trained <= other.trained
        return as_good and self[1:] != other[1:]


def tried(setting: dict) -> Trial:
    model = copy.deepcopy(base)
    needs = (
        {"batches": train[:4], "loss": small.loss}
        if setting["score"] in CHOICES["score"][2:]
        else {}
    )
    plan = sft.select(model, block_size=4, **setting, **needs)
    sft.convert(model, plan | sft.Plan.match(model, {"head.*": "all"}))
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for batch in train:
        small.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Trial(setting, small.accuracy(model, validation), trained)


def drawn(front: list[Trial]) -> dict:
    if front and draw.random() < 0.5:
        setting = dict(draw.choice(front).setting)
        name = draw.choice(list(CHOICES))
        return {**setting, name: draw.choice(CHOICES[name])}
    return {name: draw.choice(choices) for name, choices in CHOICES.items()}


front: list[Trial] = []
for _ in range(TRIALS):
    trial = tried(drawn(front))
    if not any(other.betters(trial) or other[1:] == trial[1:] for other in front):
        front = [other for other in front if not trial.betters(other)] + [trial]
for trial in sorted(front, key=lambda each: each.trained):
    print(f"{trial.trained:4d} entries, accuracy {trial.accuracy:.3f}: {trial.setting}")
print(f"accuracy {max(trial.accuracy for trial in front):.3f}")
