"""Trainers of other libraries over two processes: `python trainers_worker.py 2 FOLDER`.

Each leaves FOLDER/RANK.pt: {trainer: its weights}. `alone` is the same in one process.
"""

import os
import sys

import torch
from helpers import ranks
from helpers.masters_worker import net
from torch import distributed, nn
from torch.distributed.tensor import DTensor

EXAMPLES, BATCH = 32, 8


class Model(nn.Module):
    """With the loss that trainers ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.net(x)
        return {"loss": (output - labels).square().mean(), "logits": output}


def examples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, 8, generator=generator)
    labels = torch.randn(EXAMPLES, 1, generator=generator)
    return [{"x": x[i], "labels": labels[i]} for i in range(EXAMPLES)]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.02, weight_decay=0.01)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()
        for name, tensor in model.state_dict().items()
    }


def by_transformers(folder: str, world: int) -> dict[str, torch.Tensor]:
    """Over DistributedDataParallel."""
    import transformers

    model = Model()
    arguments = transformers.TrainingArguments(
        folder,
        num_train_epochs=2,
        per_device_train_batch_size=BATCH // world,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=examples(), optimizers=(adam(model), None)
    )
    trainer.train()
    return weights_of(model.net)


def by_lightning(folder: str, world: int, strategy: str = "ddp") -> dict[str, torch.Tensor]:
    """strategy: "ddp", or "fsdp2" for Lightning's ModelParallelStrategy."""
    import lightning
    from lightning.pytorch.plugins.environments import LightningEnvironment
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def configure_model(self) -> None:
            if strategy == "fsdp2" and world > 1:
                from torch.distributed.fsdp import fully_shard

                fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch: dict, _: int) -> torch.Tensor:
            return self.model(**batch)["loss"]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adam(self)

    chosen = "auto"
    if world > 1:
        environment = dict(cluster_environment=LightningEnvironment())
        chosen = DDPStrategy(process_group_backend="gloo", **environment)
        if strategy == "fsdp2":
            sizes = dict(data_parallel_size=world, tensor_parallel_size=1)
            chosen = ModelParallelStrategy(
                **sizes, save_distributed_checkpoint=False, process_group_backend="gloo"
            )
            chosen.cluster_environment = LightningEnvironment()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=world, strategy=chosen, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, use_distributed_sampler=False,  # which would shuffle
    )  # fmt: skip
    module = Module()
    mine = examples()[distributed.get_rank() :: world] if world > 1 else examples()
    loader = torch.utils.data.DataLoader(mine, batch_size=BATCH // world)
    trainer.fit(module, loader)
    return weights_of(module.model.net)


TRAINERS = {
    "transformers": by_transformers,
    "Lightning": by_lightning,
    "Lightning, FSDP2": lambda folder, world: by_lightning(folder, world, "fsdp2"),
}


def alone(name: str, folder: str) -> dict[str, torch.Tensor]:
    return TRAINERS[name](folder, 1)


def main(rank: int) -> dict:
    world = distributed.get_world_size()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world))
    os.environ.update(LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1")
    return {name: train(sys.argv[2], world) for name, train in TRAINERS.items()}


if __name__ == "__main__":
    ranks.fork(int(sys.argv[1]), sys.argv[2], main)
