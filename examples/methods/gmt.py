"""GMT (Li et al., 2024): of every update's accumulated gradient the largest fifth counts.

The whole gradient is needed at each update, so it costs what full fine-tuning costs, and no recipe
makes it cheaper. python examples/methods/gmt.py
"""

import small
import torch

import sparse_ft as sft

model = small.model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
window = sft.Window(density=0.2).attach(model, optimizer)
for number, batch in enumerate(small.batches(120), 1):
    loss = small.loss(model, batch) / 2
    loss.backward()
    if number % 2:
        continue  # two batches an update
    optimizer.step()
    window.step()
    optimizer.zero_grad()
    print(f"loss {2 * loss.item():.4f}")
print(f"accuracy {small.accuracy(model, small.batches(8, seed=1)):.3f}")
