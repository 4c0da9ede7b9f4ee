"""transformers' Trainer. python examples/trainers/transformers_trainer.py"""

import tiny
from transformers import Trainer, TrainingArguments

import sparse_ft as sft
from sparse_ft.trainers import SparseCallback

model = tiny.model()
sft.convert(model, sft.select(model, density=0.05, batches=tiny.batches()[:4]))
arguments = TrainingArguments(
    "run",
    learning_rate=1e-2,
    num_train_epochs=10,
    per_device_train_batch_size=4,
    logging_steps=1,
    save_strategy="epoch",
    report_to=[],
)
callbacks = [SparseCallback()]  # checkpoints hold what trains, not the whole model
trainer = Trainer(model, arguments, train_dataset=tiny.rows(), callbacks=callbacks)
trainer.train()  # or resume_from_checkpoint=True: it goes on bit for bit
model.save_pretrained("trained")
for entry in trainer.state.log_history:
    if "loss" in entry:
        print(f"loss {float(entry['loss']):.4f}")
