"""Runs under FSDP2: `python fsdp_worker.py WORLD FOLDER [CHECKPOINT]` leaves FOLDER/RANK.pt of each
rank.
"""

import dataclasses
import sys
import traceback
from pathlib import Path

import torch
from helpers import fsdp_checkpoints, ranks, sharded_net
from helpers.sharded_net import SELECTED, Case
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

import sparse_ft as sft

# fp32 values over 16-bit weights: a bias that trains whole would be in 16 bits.
WITH_A_BIAS = SELECTED | {"layers.0.up.bias": sft.Entries(range(17))}
CASES = {
    "plain": Case(),
    "AdamW": Case("AdamW"),
    "SGD": Case("SGD", worlds=(2,)),
    "kept after forward": Case(shard=dict(reshard_after_forward=False)),
    "resharded everywhere": Case(shard=dict(reshard_after_forward=True)),
    "resharded to 2": Case(shard=dict(reshard_after_forward=2), worlds=(4,)),
    "checkpointed": Case(checkpointed=True),
    "lean": Case(convert=dict(lean=True)),
    "lean and checkpointed": Case(convert=dict(lean=True), checkpointed=True, worlds=(2,)),
    "accumulated": Case(accumulate=2),
    "clipped": Case(clip=0.05),
    "offloaded": Case(shard=dict(offload_policy=CPUOffloadPolicy(pin_memory=False))),
    "to the origin": Case("to the origin", plan=SELECTED, convert=dict(origin=True), worlds=(2,)),
    "scaled": Case(factors={"layers.0.up.weight": 0.25, "layers.1.up.weight": 0.5}, worlds=(2,)),
    "16 bit": Case(dtype=torch.bfloat16, plan=WITH_A_BIAS, exact=2**-7),
}
# Compared with one process under FSDP2: nothing else computes in one dtype and keeps another.
POLICIES = {
    "32 bit": (torch.float64, MixedPrecisionPolicy(torch.float32, torch.float64), 1e-6),
    "16 bit": (torch.float32, MixedPrecisionPolicy(torch.bfloat16, torch.float32), 2**-6),
}


def whole(model):
    """The state_dict on one process."""
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in model.state_dict().items()
    }


def losses_of_all(losses):
    losses = torch.stack(losses)
    distributed.all_reduce(losses)
    return losses / distributed.get_world_size()


def run_case(case, rank, world):
    model = sharded_net.shard(sharded_net.converted(case), **case.shard)
    optimizer = sharded_net.OPTIMIZERS[case.optimizer](model.parameters())
    losses = sharded_net.train(model, optimizer, case, rank, world)
    return {"losses": losses_of_all(losses), "weights": whole(model)}


def run_policy(dtype, policy, rank, world, alone):
    shard = dict(mp_policy=policy)
    together = run_case(Case(dtype=dtype, shard=shard), rank, world)
    case = Case(dtype=dtype, shard=dict(shard, mesh=alone))
    return together, run_case(case, 0, 1)


def from_the_first_rank(rank, world):
    """The others have a model without numbers, and no plan."""
    case = Case()
    with torch.device("meta" if rank else "cpu"):
        model = sharded_net.net()
    sft.convert(model, case.plan if rank == 0 else None)
    whole_state = model.state_dict() if rank == 0 else {}
    sharded_net.shard(model)
    if rank:
        model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, whole_state, options=options)
    optimizer = sharded_net.OPTIMIZERS[case.optimizer](model.parameters())
    losses = sharded_net.train(model, optimizer, case, rank, world)
    return {"losses": losses_of_all(losses), "weights": whole(model)}


def collectives(plan):
    """How many of each kind one step takes. plan: of selections, or names of what trains whole."""
    case = Case(plan=plan, steps=2)
    is_dense = isinstance(plan, set)
    model = sharded_net.net() if is_dense else sharded_net.converted(case)
    for name, parameter in model.named_parameters():
        if is_dense:
            parameter.requires_grad_(name in plan)
    sharded_net.shard(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2, foreach=False)
    sharded_net.train(model, optimizer, dataclasses.replace(case, steps=1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sharded_net.train(model, optimizer, case, first=1)
    found = [event.name for event in profile.events() if event.name.startswith("c10d::")]
    return {name: found.count(name) for name in sorted(set(found))}


def skipped(rank):
    """Whether a step is skipped by all ranks where one has seen a gradient that is not finite."""
    model = sharded_net.shard(sharded_net.converted(Case()))
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2, skip_nonfinite=True)
    before = whole(model)

    def spoil(step):
        if rank == 1 and step == 0:
            model.head.values.grad.to_local().fill_(float("inf"))

    sharded_net.train(model, optimizer, Case(steps=1), rank, 2, before_step=spoil)
    after_one = whole(model)
    sharded_net.train(model, optimizer, Case(steps=2), rank, 2, first=1, before_step=spoil)
    return {
        "steps": optimizer.skipped_steps,
        "kept": all(torch.equal(after_one[name], tensor) for name, tensor in before.items()),
        "went on": any(not torch.equal(whole(model)[name], before[name]) for name in before),
    }


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(sharded_net.TOKENS, sharded_net.WIDTH)
        self.middle = nn.Linear(sharded_net.WIDTH, sharded_net.WIDTH)
        self.head = nn.Linear(sharded_net.WIDTH, sharded_net.TOKENS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.middle(self.embed(tokens))).mean(1)


def tied(rank, world, is_sharded):
    """An embedding that is the output head too."""
    torch.manual_seed(0)
    model = Tied()
    sft.convert(model, {"embed.weight": sft.Rows([0, 2, 5])}, process_group=False)
    if is_sharded:
        fully_shard(model)
    optimizer = sft.SelectiveAdamW(model.parameters(), 1e-2)
    losses = sharded_net.train(model, optimizer, Case(), rank, world)
    return {"losses": losses_of_all(losses) if is_sharded else losses, "weights": whole(model)}


def other_entries(rank):
    """The error of ranks that have selected other entries, each by itself."""
    plan = {"head.weight": SELECTED["head.weight"], "layers.0.down.weight": sft.Rows([0, 1 + rank])}
    model = sharded_net.net()
    sft.convert(model, plan, process_group=False)
    sharded_net.shard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    try:
        sharded_net.train(model, optimizer, Case(steps=1), rank, 2)
    except RuntimeError as error:
        return str(error)
    return "nothing was refused"


def checkpointed_names():
    """The names of a state_dict where torch's wrapper checkpoints the layers."""
    model = sharded_net.converted(Case())
    for number, layer in enumerate(model.layers):
        model.layers[number] = fully_shard(checkpoint_wrapper(layer))
    fully_shard(model)
    return list(get_model_state_dict(model))


def main(rank):
    world = distributed.get_world_size()
    each_alone = init_device_mesh("cpu", (world, 1), mesh_dim_names=("all", "one"))["one"]
    found = {
        name: run_case(case, rank, world) for name, case in CASES.items() if world in case.worlds
    }
    for name, (dtype, policy, _) in POLICIES.items():
        found[f"policy {name}"] = run_policy(dtype, policy, rank, world, each_alone)
    found["from the first rank"] = from_the_first_rank(rank, world)
    if world == 4:
        replicas = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
        found["replicas"] = run_case(Case(shard=dict(mesh=replicas)), rank, world)
        found["resumed"] = fsdp_checkpoints.resume(sys.argv[3], "checkpoint", rank, world)
        return found
    columns = {name: SELECTED[name] for name in ("layers.0.up.weight", "head.weight")}
    rows = {name: SELECTED[name] for name in ("layers.0.down.weight", "layers.1.up.weight")}
    found["skipped"] = skipped(rank)
    found["tied"] = tied(rank, world, True)
    found["other entries"] = other_entries(rank)
    found["names"] = checkpointed_names()
    found["collectives"] = {
        "dense": {
            "two layers": collectives(set(columns)),
            "both layers": collectives(set(columns | rows)),
        },
        "columns": collectives(columns),
        "rows": collectives(columns | rows),
    }
    found |= fsdp_checkpoints.run(sys.argv[2], rank, world)
    return found


def told(rank):
    try:
        return main(rank)
    except BaseException:
        traceback.print_exc()
        raise


if __name__ == "__main__":
    world, folder = int(sys.argv[1]), sys.argv[2]
    ranks.fork(world, folder, told)
    if world == 2:
        Path(folder, "killed").mkdir()
        fsdp_checkpoints.with_one_killed(folder)
