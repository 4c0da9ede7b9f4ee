"""A loop of your own. python examples/trainers/plain_loop.py"""

import tiny

import sparse_ft as sft

model, batches = tiny.model(), tiny.batches(epochs=10)
plan = sft.select(model, density=0.05, batches=batches[:4])
sft.convert(model, plan)
optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
for batch in batches:
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.4f}")
model.save_pretrained("trained")  # plain weights; sft.save_delta(model, "delta") what changed
