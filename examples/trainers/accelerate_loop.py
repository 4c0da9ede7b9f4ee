"""Hugging Face accelerate. accelerate launch examples/trainers/accelerate_loop.py"""

import tiny
from accelerate import Accelerator
from torch.utils.data import DataLoader

import sparse_ft as sft

accelerator = Accelerator()
model = tiny.model()
sft.convert(model, sft.select(model, density=0.05, batches=tiny.batches()[:4]))  # then prepare
optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
loader = DataLoader(tiny.rows(), batch_size=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for _ in range(10):
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"loss {loss.item():.4f}")
if accelerator.is_main_process:
    sft.save_delta(accelerator.unwrap_model(model), "delta")
