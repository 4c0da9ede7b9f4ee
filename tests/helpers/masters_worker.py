"""Two processes that train with master copies, in every way that is named.

`python masters_worker.py WORLD FOLDER [masters|1|2|3 …]`; leaves FOLDER/WAY/RANK.pt. What takes
seconds to import is imported once; each way has processes of its own.

masters: a hand-written loop in which each rank steps its share of the flat fp32 copies, as ZeRO-1
and Megatron do. 1, 2, 3: that stage of DeepSpeed's ZeRO.
"""

import os
import sys
from pathlib import Path

import torch
from helpers import ranks
from torch import distributed, nn

import sparse_ft as sft

STEPS, BATCH = 12, 8
PLAN = {
    "0.weight": sft.Rows([0, 3]),
    "0.bias": sft.Entries([1, 2]),
    "2.weight": sft.Columns([1, 4]),
    "3.weight": sft.Entries([0, 5]),
    "4.weight": "all",
}


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 1)
    )
    sft.convert(model, PLAN)
    return model


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.01)


def loss_of(model, step, rank=0, world=1):
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(BATCH, n, generator=generator).chunk(world)[rank] for n in (8, 1))
    return (model(x) - y).square().mean()


def in_one_process(model):
    optimizer = adam(trained(model))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def flattened(tensors, world):
    """One vector of all entries, padded so that each rank gets as many."""
    flat = torch.cat([t.detach().flatten() for t in tensors])
    return nn.functional.pad(flat, (0, -flat.numel() % world))


def with_masters(model, rank, world):
    """Flat copies, each rank steps its share of them; all write the whole back through `.data`."""
    parameters = trained(model)
    flat = flattened(parameters, world)
    share = nn.Parameter(flat.chunk(world)[rank].clone())
    optimizer = adam([share])
    for step in range(STEPS):
        loss_of(model, step, rank, world).backward()
        gradient = flattened([p.grad for p in parameters], world)
        distributed.all_reduce(gradient)
        share.grad = gradient.div(world).chunk(world)[rank]
        for p in parameters:
            p.grad = None
        optimizer.step()
        distributed.all_gather(list(flat.chunk(world)), share.detach())
        start = 0
        for p in parameters:
            p.data.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()


def with_deepspeed(model, rank, world, stage):
    import deepspeed

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    config = {
        "train_micro_batch_size_per_gpu": BATCH // world,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # 1.0 where nothing is said
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam(trained(model)), config=config)
    for step in range(STEPS):
        engine.backward(loss_of(engine, step, rank, world))
        engine.step()


def trained_by(way, rank, world):
    """The weights in the end, or why they are refused."""
    model = net()
    try:
        if way == "masters":
            with_masters(model, rank, world)
        else:
            with_deepspeed(model, rank, world, int(way))
    except RuntimeError as error:
        return str(error)
    trained = sft.revert(model).state_dict()
    if way != "masters":
        check_late(model)
    return trained


def check_late(model):
    """DeepSpeed has the parameters of `model` and would step no new ones."""
    try:
        sft.convert(model, PLAN)
    except ValueError as error:
        assert "is held by DeepSpeed's ZeRO" in str(error), error
    else:
        raise AssertionError("converted after deepspeed.initialize")


def import_deepspeed():
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    for name in deepspeed.ops.__compatible_ops__:
        deepspeed.ops.__compatible_ops__[name] = False  # or it compiles one, for a minute


def main(world, folder, ways):
    if set(ways) - {"masters"}:
        import_deepspeed()
    for way in ways:
        own = folder / way
        own.mkdir()
        ranks.fork(world, own, lambda rank, way=way: trained_by(way, rank, world))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
