"""DeepSpeed's ZeRO-1 or 2. deepspeed examples/trainers/deepspeed_zero.py 2"""

import os
import sys

import deepspeed
import tiny
import torch

import sparse_ft as sft

for name, alone in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
    os.environ.setdefault(name, alone)
deepspeed.init_distributed()
model, batches = tiny.model(), tiny.batches(epochs=10)
sft.convert(model, sft.select(model, density=0.05, batches=batches[:4]))
config = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": int(sys.argv[-1])},
    "zero_allow_untested_optimizer": True,
}
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
for batch in batches:
    loss = engine(**{name: tensor.to(engine.device) for name, tensor in batch.items()}).loss
    engine.backward(loss)
    engine.step()
    print(f"loss {loss.item():.4f}")
