"""One process of a run under FSDP2: `python fsdp_worker.py RANK WORLD FOLDER`.

Leaves FOLDER/RANK.pt behind.
"""

import sys
import traceback
from pathlib import Path

import torch
from helpers import ranks, sharded_net
from helpers.sharded_net import Case
from torch import distributed
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

CASES = {
    "plain": Case(),
    "AdamW": Case("AdamW"),
    "SGD": Case("SGD"),
    "kept after forward": Case(shard=dict(reshard_after_forward=False)),
    "resharded everywhere": Case(shard=dict(reshard_after_forward=True)),
    "checkpointed": Case(checkpointed=True),
    "lean": Case(convert=dict(lean=True)),
    "accumulated": Case(accumulate=2),
    "clipped": Case(clip=0.05),
    "offloaded": Case(shard=dict(offload_policy=CPUOffloadPolicy(pin_memory=False))),
}


def shard(model, **keywords):
    """Each layer a group, and the rest one."""
    for layer in model.layers:
        fully_shard(layer, **keywords)
    return fully_shard(model, **keywords)


def whole(model):
    """The state_dict on one process."""
    return {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}


def run_case(name, rank, world):
    case = CASES[name]
    model = shard(sharded_net.converted(case), **case.shard)
    optimizer = sharded_net.OPTIMIZERS[case.optimizer](model.parameters())
    losses = torch.stack(sharded_net.train(model, optimizer, case, rank, world))
    distributed.all_reduce(losses)
    return {"losses": losses / world, "weights": whole(model)}


def run(rank, world):
    found = {}
    for name in CASES:
        try:
            found[name] = run_case(name, rank, world)
        except Exception:
            traceback.print_exc()
            raise
    return found


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    ranks.join(rank, world, folder)
    torch.save(run(rank, world), Path(folder, f"{rank}.pt"))
    distributed.destroy_process_group()
