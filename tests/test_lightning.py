"""Lightning's Trainer with mixed precision and clipping, beside the loop that it stands for."""

import copy

import pytest
import torch
from torch import nn

import sparse_ft as sft

lightning = pytest.importorskip("lightning")

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, about loggers and workers
STEPS, CLIP = 4, 0.05


class Module(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        return self.model(batch).float().square().mean()

    def configure_optimizers(self):
        return sft.SelectiveAdamW(self.model.named_parameters(), lr=0.05, no_decay="*.bias")


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4))
    sft.convert(
        model, {"0.weight": sft.Columns([1, 5]), "2.weight": sft.Rows([0]), "2.bias": "all"}
    )
    return model


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_equals_the_loop_by_hand(tmp_path, precision, algorithm):
    batches = [
        torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(STEPS)
    ]
    model = build()
    by_hand = copy.deepcopy(model)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        precision=precision,
        gradient_clip_val=CLIP,
        gradient_clip_algorithm=algorithm,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Module(model), torch.utils.data.DataLoader(batches, batch_size=None))
    optimizer = sft.SelectiveAdamW(by_hand.named_parameters(), lr=0.05, no_decay="*.bias")
    # In Lightning's order: norms are sums.
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = by_hand(batch).float().square().mean()
        loss.backward()
        if algorithm == "norm":
            assert nn.utils.clip_grad_norm_(trained, CLIP) > CLIP
        else:
            nn.utils.clip_grad_value_(trained, CLIP)
        optimizer.step()
    got, want = model.state_dict(), by_hand.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert not torch.equal(got["0.values"], build()[0].values)
