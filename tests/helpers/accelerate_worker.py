"""Two processes under accelerate with FSDP2: `python accelerate_worker.py 2 FOLDER`.

Each leaves FOLDER/RANK.pt, {case: what it came to}, and the checkpoints of each case, one of them
merged.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, merge_fsdp_weights
from helpers import ranks, sharded_net
from helpers.fsdp_worker import whole
from helpers.sharded_net import Case
from torch import distributed

CASE = Case(steps=4, clip=0.05)
SAVED = 2  # steps before the checkpoint
# {case: (optimiser, more for the plugin)}
CASES = {
    "SelectiveAdamW": ("SelectiveAdamW", dict(cpu_ram_efficient_loading=False)),
    "AdamW": ("AdamW", dict(cpu_ram_efficient_loading=False)),
    "from rank 0": ("SelectiveAdamW", dict(cpu_ram_efficient_loading=True)),
}


def accelerated(settings: dict) -> Accelerator:
    """accelerate takes FSDP on a CPU only if it is told so after its own look at the machine."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Layer"],
        state_dict_type="SHARDED_STATE_DICT",
        **settings,
    )
    return accelerator


def prepared(name: str) -> tuple:
    optimizer, settings = CASES[name]
    accelerator = accelerated(settings)
    model = sharded_net.converted(CASE)
    made = sharded_net.OPTIMIZERS[optimizer](model.parameters())
    return accelerator, *accelerator.prepare(model, made)


def train(accelerator, model, optimizer, rank: int, first: int, last: int) -> list:
    losses = []
    for batch in sharded_net.batches(last)[first:]:
        tokens, wanted = sharded_net.part_of(batch, rank, distributed.get_world_size())
        loss = torch.nn.functional.cross_entropy(model(tokens).float(), wanted)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), CASE.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def run(name: str, rank: int, folder: Path) -> dict:
    saved = folder / name
    accelerator, model, optimizer = prepared(name)
    train(accelerator, model, optimizer, rank, 0, SAVED)
    accelerator.save_state(saved)
    merge_fsdp_weights(saved / "pytorch_model_fsdp_0", saved / "merged")
    at_the_checkpoint = whole(model)
    losses = train(accelerator, model, optimizer, rank, SAVED, CASE.steps)
    weights = whole(model)
    accelerator, model, optimizer = prepared(name)
    accelerator.load_state(saved)
    again = train(accelerator, model, optimizer, rank, SAVED, CASE.steps)
    return {
        "losses": torch.stack(losses),
        "weights": weights,
        "at the checkpoint": at_the_checkpoint,
        "losses again": torch.stack(again),
        "weights again": whole(model),
    }


def main(rank: int) -> dict:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    folder = Path(sys.argv[2])
    return {name: run(name, rank, folder) for name in CASES}


if __name__ == "__main__":
    ranks.fork(int(sys.argv[1]), sys.argv[2], main)
