"""One process of a data-parallel run: `python ddp_worker.py RANK WORLD FOLDER`.

Leaves FOLDER/RANK.pt behind.
"""

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import sparse_ft as sft

STEPS, BATCH = 6, 4
PLAN = {
    "embed.weight": sft.Rows([0, 2, 5]),
    "first.weight": sft.Columns([1, 3]),
    "first.bias": "all",
    "attention.in_proj_weight": sft.Rows([0, 9, 20]),
    "attention.out_proj.weight": sft.Entries([3, 17]),
    "second.weight": sft.Blocks([[0, 1], [1, 2]], (5, 3)),
    "norm.weight": sft.Entries([0, 7]),
}
OPTIMIZERS = {
    "SelectiveAdamW": lambda ps: sft.SelectiveAdamW(ps, 1e-2),
    "AdamW fused": lambda ps: torch.optim.AdamW(ps, 1e-2, fused=True),
    "by chance, 16 bit": lambda ps: sft.SelectiveAdamW(ps, 1e-2, stochastic_rounding=True),
    "corrected, 16 bit": lambda ps: sft.SelectiveAdamW(ps, 1e-2, correction=True),
}
# In fp64, where the joint batch gives the same weights.
EXACT = [name for name in OPTIMIZERS if "16 bit" not in name]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        # DDP broadcasts buffers at every forward: this one, and no other.
        self.register_buffer("offset", torch.ones(5))

    def forward(self, tokens):
        x = torch.tanh(self.first(self.embed(tokens))) + self.offset.mean()
        return self.second(self.norm(x + self.attention(x, x, x)[0]))


def net(name, seed=0):
    """The model that optimiser `name` trains, converted."""
    torch.manual_seed(seed)
    dtype = torch.float64 if name in EXACT else torch.bfloat16
    model = Net().to(dtype)
    sft.convert(model, PLAN, values_dtype=None if name in EXACT else dtype)
    return model


def train(model, optimizer, rank=0, world=1):
    """STEPS steps on this rank's share of each batch; returns the collectives of the last one."""
    for step in range(STEPS):
        tokens = torch.randint(6, (BATCH, 5), generator=torch.Generator().manual_seed(step))
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        ) as profile:
            optimizer.zero_grad()
            model(tokens.chunk(world)[rank]).square().mean().backward()
            optimizer.step()
    return [
        (e.name, e.input_shapes) for e in profile.events() if e.name.startswith(("c10d::", "gloo:"))
    ]


def run(name, rank, world):
    """Train with optimiser `name`; (weights, collectives of a step, number of entries
    that train).
    """
    model = net(name, seed=rank)  # DDP gives every rank the weights and values of rank 0
    parallel = DistributedDataParallel(model)
    collectives = train(parallel, OPTIMIZERS[name](parallel.parameters()), rank, world)
    values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"weights": sft.revert(model).state_dict(), "collectives": collectives, "values": values}


def main(rank, world, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    torch.save({name: run(name, rank, world) for name in OPTIMIZERS}, Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
