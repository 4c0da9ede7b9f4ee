"""Four processes that train a model which tensor parallel has cut.

`python tensor_parallel_worker.py 4 FOLDER`; each leaves FOLDER/RANK.pt: {case: its weights}.
"""

import sys

import torch
import torch.distributed.checkpoint as dcp
from helpers import ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import sparse_ft as sft

STEPS = 3
TOKENS, WIDTH, HIDDEN, CLASSES = 10, 12, 16, 6


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.tanh(self.up(x)))
        return self.out(self.norm(x))


def by_rows() -> dict:
    return {"up.weight": sft.Rows([0, 3, 15]), "down.weight": sft.Rows([1, 2, 11])}


def by_columns() -> dict:
    return {"up.weight": sft.Columns([0, 5, 11]), "down.weight": sft.Columns([1, 2, 14])}


def by_blocks() -> dict:
    """On one of the two the cut goes through blocks; the other's reach past the edge."""
    return {
        "up.weight": sft.Blocks([[0, 1], [1, 2], [3, 0]], (5, 4)),
        "down.weight": sft.Blocks([[0, 0], [1, 3]], (8, 4)),
    }


def by_entries() -> dict:
    return {
        "up.weight": sft.Entries([0, 5, 13, 100, 191]),
        "up.bias": sft.Entries([0, 9]),
        "down.weight": sft.Entries([3, 17, 90, 191]),
        "down.bias": "all",
        "norm.weight": sft.Entries([0, 7]),
    }


def on_one_rank() -> dict:
    """All that trains lies on the first rank of two: the others take part all the same."""
    return {"up.weight": sft.Rows([0, 3]), "down.weight": sft.Columns([1])}


def of_rows_of_a_table() -> dict:
    return {"embed.weight": sft.Rows([0, 3, 9]), "out.weight": sft.Rows([0, 5]), "out.bias": "all"}


PLANS = {
    make.__name__: make
    for make in (by_rows, by_columns, by_blocks, by_entries, on_one_rank, of_rows_of_a_table)
}


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> torch.Tensor:
    return torch.randint(TOKENS, (4, 6), generator=torch.Generator().manual_seed(step))


def trained(model: nn.Module) -> list:
    return [p for p in model.parameters() if p.requires_grad]


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens).square().mean()


OPTIMIZERS = {
    "SelectiveAdamW": lambda parameters: sft.SelectiveAdamW(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, half: int | None = None) -> list:
    """The losses. Each step sums the gradients of the two halves of a batch, by two backwards.

    half: the one of them that this process has, where others have the other, and all take the mean.
    """
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        halves = batch(step).chunk(2)
        if half is None:
            for tokens in halves:
                loss = loss_of(model, tokens)
                loss.backward()
        else:
            loss = loss_of(model, halves[half])
            (2 * loss).backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def cut(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
        "out": ColwiseParallel(output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, plan)


def cut_with_the_sequence(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Between the layers each rank has a part of the sequence, and its norm a gradient of that."""
    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "out": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    return parallelize_module(model, mesh, plan)


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }


def run(model: nn.Module, optimizer: str, half: int | None = None) -> dict:
    losses = train(model, OPTIMIZERS[optimizer](trained(model)), half)
    return {"losses": losses, "weights": whole(model)}


def in_parallel(name: str, optimizer: str, mesh: DeviceMesh) -> dict:
    """Cut over two ranks; the other two do the same."""
    model = cut(net(), mesh["tp"])
    sft.convert(model, PLANS[name]())
    return {**run(model, optimizer), "reverted": whole(sft.revert(model))}


def over_four(name: str, optimizer: str, mesh: DeviceMesh) -> dict:
    """Cut over all: 6 and 10 rows are no multiples of 4, and one rank has none of the 6."""
    model = cut(net(), init_device_mesh("cpu", (4,)))
    sft.convert(model, PLANS[name]())
    return run(model, optimizer)


def with_the_sequence(name: str, optimizer: str, mesh: DeviceMesh) -> dict:
    model = cut_with_the_sequence(net(), mesh["tp"])
    sft.convert(model, PLANS[name]())
    return run(model, optimizer)


def lean(name: str, optimizer: str, mesh: DeviceMesh) -> dict:
    model = cut(net(), mesh["tp"])
    sft.convert(model, PLANS[name](), lean=True)
    return run(model, optimizer)


def split(name: str, mesh: DeviceMesh) -> nn.Module:
    """Cut over two ranks, and split over two."""
    model = cut(net(), mesh["tp"])
    sft.convert(model, PLANS[name]())
    fully_shard([model.up, model.down], mesh=mesh["dp"])
    return fully_shard(model, mesh=mesh["dp"])


def on_both_dimensions(name: str, optimizer: str, mesh: DeviceMesh) -> dict:
    """Each of the two that share a part has a half of each batch."""
    return run(split(name, mesh), optimizer, mesh.get_local_rank("dp"))


# {case: (how, plan, optimiser)}
CASES = {name: (in_parallel, name, "SelectiveAdamW") for name in PLANS}
CASES |= {f"{name}, 2 x 2": (on_both_dimensions, name, "SelectiveAdamW") for name in PLANS}
for name in ("by_blocks", "by_entries", "of_rows_of_a_table"):
    CASES[f"{name}, over four"] = over_four, name, "SelectiveAdamW"
CASES["AdamW"] = in_parallel, "by_entries", "AdamW"
CASES["SGD"] = in_parallel, "by_columns", "SGD"
CASES["AdamW, 2 x 2"] = on_both_dimensions, "by_entries", "AdamW"
CASES["sequence parallel"] = with_the_sequence, "by_entries", "SelectiveAdamW"
CASES["lean"] = lean, "by_columns", "SelectiveAdamW"


def loaded(mesh: DeviceMesh, folder: str) -> dict[str, dict]:
    """What new models hold that have loaded the state of trained ones."""
    trained_one = cut(net(), mesh["tp"])
    sft.convert(trained_one, by_entries())
    run(trained_one, "SelectiveAdamW")
    state = trained_one.state_dict()
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(".values")}
    found = {"trained": whole(trained_one)}
    for name, part in ("state", state), ("weights", weights):
        model = cut(net(), mesh["tp"])
        sft.convert(model, by_entries())
        model.load_state_dict(part)
        found[name] = whole(model)
    both = split("by_entries", mesh)
    run(both, "SelectiveAdamW", mesh.get_local_rank("dp"))
    found["trained on both"] = whole(both)
    state = get_model_state_dict(both)
    dcp.save(state, checkpoint_id=folder)
    for name in ("state on both", "weights on both"):
        model = split("by_entries", mesh)
        part = get_model_state_dict(model)
        if name == "weights on both":
            part = {key: tensor for key, tensor in part.items() if not key.endswith(".values")}
        dcp.load(part, checkpoint_id=folder)
        model.load_state_dict(part, strict=False)
        found[name] = whole(model)
    return found


def main(rank: int) -> dict:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found = {case: how(name, optimizer, mesh) for case, (how, name, optimizer) in CASES.items()}
    found["loaded"] = loaded(mesh, f"{sys.argv[2]}/checkpoint")
    return found


if __name__ == "__main__":
    ranks.fork(int(sys.argv[1]), sys.argv[2], main)
