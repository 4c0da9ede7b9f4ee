"""Lightning's checkpoints as small as the run: what trains, what it needs, and what is refused."""

import pytest
import torch
from torch import nn

import sparse_ft as sft

lightning = pytest.importorskip("lightning")

from sparse_ft.trainers import SparseCheckpoint  # noqa: E402
from sparse_ft.trainers.lightning import delta_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about loggers and workers
EPOCH, SAVED = 4, 4  # Lightning goes on with the next epoch


class Module(lightning.LightningModule):
    """A converted model beside a teacher that is not."""

    def __init__(self, model, in_backward=False):
        super().__init__()
        self.teacher = nn.Linear(8, 4)
        self.model, self.in_backward = model, in_backward

    def training_step(self, batch, _):
        with torch.no_grad():
            wanted = self.teacher(batch)
        return (self.model(batch).float() - wanted).square().mean()

    def configure_optimizers(self):
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return sft.SelectiveAdamW(trained, lr=0.05, in_backward=self.in_backward)


def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


PLAN = {"0.weight": sft.Entries([1, 5, 40]), "2.weight": sft.Rows([0]), "2.bias": "all"}


def module(plan=PLAN, seed=0, **more):
    model = build(seed)
    sft.convert(model, plan)
    torch.manual_seed(9)
    return Module(model, **more)


def fit(pl_module, folder, resume=None, every=SAVED, clip=None):
    batches = [
        torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(EPOCH)
    ]
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=every, save_top_k=-1
    )
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, gradient_clip_val=clip,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[saving, SparseCheckpoint()],
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(pl_module, loader, ckpt_path=resume, weights_only=False)
    return pl_module


def state_of(pl_module):
    return {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}


def assert_equal(got, want):
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.fixture
def checkpoint(tmp_path):
    fit(module(), tmp_path)
    return tmp_path / f"step={SAVED}.ckpt"


def test_it_goes_on_bit_for_bit(checkpoint, tmp_path):
    whole = fit(module(), tmp_path / "whole")
    plan = delta_of(torch.load(checkpoint, weights_only=False)).plan
    again = fit(module(plan), tmp_path / "again", resume=checkpoint)
    assert_equal(state_of(again), state_of(whole))


def test_it_holds_what_training_changes_and_what_is_not_ours(checkpoint):
    saved = torch.load(checkpoint, weights_only=False)["state_dict"]
    trained = {"model.0.values", "model.2.values", "model.2.bias", "model.sparse_ft_trained"}
    buffers = {f"model.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(saved) == trained | buffers | {"teacher.weight", "teacher.bias"}


def test_its_delta_makes_the_trained_model_of_the_base(checkpoint):
    loaded = torch.load(checkpoint, weights_only=False)
    base = sft.apply(build(), delta_of(loaded))
    values = loaded["state_dict"]["model.0.values"]
    assert torch.equal(PLAN["0.weight"].gather(base[0].weight.detach()), values)
    with pytest.raises(KeyError, match="prefix: 'net.' is no converted module.*'model.'"):
        delta_of(loaded, "net.")


def test_another_plan_and_another_base_are_refused(checkpoint, tmp_path):
    other = {**PLAN, "2.weight": sft.Rows([1])}
    with pytest.raises(RuntimeError, match="another selection of '2.weight'"):
        fit(module(other), tmp_path / "plan", resume=checkpoint)
    with pytest.raises(RuntimeError, match="another base: its numbers differ"):
        fit(module(seed=1), tmp_path / "base", resume=checkpoint)


def test_clipping_with_steps_in_the_backward_is_refused(tmp_path):
    with pytest.raises(ValueError, match="gradient_clip_val: 0.5 clips nothing"):
        fit(module(in_backward=True), tmp_path, clip=0.5)
