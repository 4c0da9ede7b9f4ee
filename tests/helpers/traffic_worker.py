"""Four processes that count what a training step moves, over two of them and over all.

`python traffic_worker.py 4 FOLDER`; each leaves FOLDER/RANK.pt: {(strategy, structure, world size):
{collective: bytes of the whole}}.
"""

import sys
from collections import Counter

import torch
from helpers import ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import sparse_ft as sft

BATCH, LENGTH = 2, 8
TOKENS, WIDTH, HIDDEN = 50, 32, 56  # what four ranks share is not always a multiple of four
STRUCTURES = "columns", "rows", "blocks", "entries"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.norm(x)
        return x + self.down_proj(torch.tanh(self.gate_proj(given)) * self.up_proj(given))


class Net(nn.Module):
    """With the plan that models of transformers have."""

    tp_plan = {
        "embed": "embedding_rowwise",
        "layers.*.gate_proj": "colwise",
        "layers.*.up_proj": "colwise",
        "layers.*.down_proj": "rowwise",
        "head": "colwise_gather_output",
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, TOKENS)
        self.register_buffer("scale", torch.ones(5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) * self.scale.mean()
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch() -> torch.Tensor:
    return torch.zeros(BATCH, LENGTH, dtype=torch.long)


def plan_of(model: nn.Module, structure: str) -> sft.Plan:
    """From the second of three layers on: the first is gathered once, the others twice."""
    settings = {"block_size": (4, 4)} if structure == "blocks" else {}
    targets = ["layers.[12].*_proj.weight"]
    return sft.select(
        model, density=0.1, structure=structure, score="random", targets=targets,
        process_group=False, **settings,
    )  # fmt: skip


# Operators of torch.distributed by the collective that they are.
COLLECTIVES = {
    "allreduce_": "all_reduce",
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "broadcast_": "broadcast",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "all_gather_into_tensor_out": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
}
SILENT = {"wait_tensor", "barrier", "_wrap_tensor_autograd"}


class Counting(TorchDispatchMode):
    """Sums the bytes of the whole that each collective moves."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(kind.__name__ == "DTensor" for kind in types):
            return NotImplemented  # what it makes of the call comes by again
        out = function(*args, **(kwargs or {}))
        if function.namespace in ("c10d", "_c10d_functional"):
            name = function._schema.name.partition("::")[2]
            if name not in SILENT:
                self.bytes[COLLECTIVES[name]] += max(map(size, tensors_of((args, out))))
        return out


def tensors_of(what):
    if isinstance(what, torch.Tensor):
        yield what
    elif isinstance(what, (tuple, list)):
        for each in what:
            yield from tensors_of(each)


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.itemsize


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(batch()).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def by_ddp(model: nn.Module, mesh) -> nn.Module:
    sft.convert(model, plan_of(model, mesh.structure), process_group=False)
    return DistributedDataParallel(model, process_group=mesh.get_group())


def by_fsdp2(model: nn.Module, mesh) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    sft.convert(model, plan_of(model, mesh.structure), process_group=False)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def by_tensor_parallel(model: nn.Module, mesh) -> nn.Module:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = plan_of(model, mesh.structure)
    styles = {
        "colwise": ColwiseParallel(),
        "rowwise": RowwiseParallel(),
        "colwise_gather_output": ColwiseParallel(output_layouts=Replicate()),
        "embedding_rowwise": RowwiseParallel(input_layouts=Replicate()),
    }
    parallelize_module(model, mesh, {name: styles[role] for name, role in model.tp_plan.items()})
    sft.convert(model, plan, process_group=False)
    return model


STRATEGIES = {"ddp": by_ddp, "fsdp2": by_fsdp2, "tensor_parallel": by_tensor_parallel}


def counted(strategy: str, structure: str, mesh) -> dict:
    mesh.structure = structure
    model = STRATEGIES[strategy](net(), mesh)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    for _ in range(2):  # the first ones set things up
        step(model, optimizer)
    with Counting() as counting:
        step(model, optimizer)
    return dict(counting.bytes)


def main(rank: int) -> dict:
    meshes = {2: init_device_mesh("cpu", (2, 2), mesh_dim_names=("apart", "together"))["together"]}
    meshes[4] = init_device_mesh("cpu", (4,))
    found = {}
    for strategy in STRATEGIES:
        for structure in STRUCTURES:
            for world, mesh in meshes.items():
                found[strategy, structure, world] = counted(strategy, structure, mesh)
    return found


if __name__ == "__main__":
    ranks.fork(int(sys.argv[1]), sys.argv[2], main)
