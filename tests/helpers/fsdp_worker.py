"""Runs under FSDP2: `python fsdp_worker.py WORLD FOLDER` leaves FOLDER/RANK.pt of each rank."""

import sys

import torch
from helpers import ranks, sharded_net
from helpers.sharded_net import Case
from torch import distributed
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

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


def main(rank):
    world = distributed.get_world_size()
    return {name: run_case(name, rank, world) for name in CASES}


if __name__ == "__main__":
    ranks.fork(int(sys.argv[1]), sys.argv[2], main)
