"""`python zeroth_order_worker.py WORLD FOLDER`: steps on batches of each rank's own.

Each rank saves what its entries are after three steps by forward passes, and after three of DDP
over small reparametrised deltas.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import sparse_ft as sft
from sparse_ft.reparametrised import RotatedValues, SalientMap, put

STEPS = 3


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batches(rank=None, world=2):
    """Of one rank; None: all of them together."""
    torch.manual_seed(1)
    data = [(torch.randn(8, 6).double(), torch.randint(0, 3, (8,))) for _ in range(STEPS)]
    if rank is None:
        return data
    size = 8 // world
    rows = slice(rank * size, (rank + 1) * size)
    return [(x[rows], target[rows]) for x, target in data]


def by_forward_passes(data):
    net = small_net()
    sft.convert(net, {"0.weight": sft.Entries([0, 7, 20]), "2.weight": sft.Columns([1, 4])})
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = sft.ZerothOrder(trained, lr=0.1)
    for x, target in data:
        optimizer.step(lambda x=x, target=target: F.cross_entropy(net(x), target))
    return [parameter.detach() for parameter in trained]


def with_deltas(data, wrap):
    net = small_net()
    put(net, {"0": RotatedValues(sft.Entries([0, 7, 20]), "dct"), "2": SalientMap([0, 2])})
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    model = wrap(net)
    optimizer = sft.SelectiveAdamW(trained, lr=0.1)
    for x, target in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()
    return [parameter.detach() for parameter in trained]


def both(rank):
    own = batches(rank)
    return by_forward_passes(own), with_deltas(own, nn.parallel.DistributedDataParallel)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    from helpers.ranks import fork

    fork(int(sys.argv[1]), sys.argv[2], both)
