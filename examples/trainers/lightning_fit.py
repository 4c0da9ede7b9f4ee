"""Lightning. python examples/trainers/lightning_fit.py"""

import lightning
import tiny
from torch.utils.data import DataLoader

import sparse_ft as sft
from sparse_ft.trainers import SparseCheckpoint


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = tiny.model()
        sft.convert(self.model, sft.select(self.model, density=0.05, batches=tiny.batches()[:4]))

    def training_step(self, batch, _):
        loss = self.model(**batch).loss
        print(f"loss {loss.item():.4f}")
        return loss

    def configure_optimizers(self):
        return sft.SelectiveAdamW(self.model.parameters(), lr=1e-2)


trainer = lightning.Trainer(max_epochs=10, callbacks=[SparseCheckpoint()], logger=False)
trainer.fit(Module(), DataLoader(tiny.rows(), batch_size=4))
