"""SubTuning (Kaplun et al., 2023): blocks join one by one, each the one that validation gains from.

An outer loop of short trainings, one for every block that is left in every round.
python examples/methods/subtuning.py
"""

import copy

import small

import sparse_ft as sft

LEAST_GAIN = 0.01
base = small.model()
train, validation = small.batches(40), small.batches(8, seed=1)


def tried(blocks: list[int]) -> tuple[float, sft.Plan]:
    """The accuracy that a training of these blocks and the head comes to."""
    model = copy.deepcopy(base)
    patterns = [f"blocks.{number}.*" for number in blocks] + ["head.*"]
    plan = sft.Plan.match(model, dict.fromkeys(patterns, "all"))
    sft.convert(model, plan)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    for batch in train:
        small.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return small.accuracy(model, validation), plan


chosen: list[int] = []
best, plan = tried(chosen)
print(f"head alone: accuracy {best:.3f}")
while len(chosen) < len(base.blocks):
    left = [number for number in range(len(base.blocks)) if number not in chosen]
    found = {number: tried([*chosen, number]) for number in left}
    number = max(found, key=lambda each: found[each][0])
    if found[number][0] < best + LEAST_GAIN:
        break
    chosen.append(number)
    best, plan = found[number]
    print(f"with block {number}: accuracy {best:.3f}")
print(plan)
print(f"accuracy {best:.3f}")
