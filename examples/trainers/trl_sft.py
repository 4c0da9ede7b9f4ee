"""TRL's SFT, a selective adapter through PEFT. python examples/trainers/trl_sft.py"""

import tiny
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from sparse_ft.peft import SelectiveConfig

trainer = SFTTrainer(
    model=tiny.model(),
    args=SFTConfig(
        "run",
        learning_rate=1e-2,
        num_train_epochs=10,
        per_device_train_batch_size=4,
        logging_steps=1,
        bf16=False,
        report_to=[],
    ),
    train_dataset=Dataset.from_list([{"text": each} for each in tiny.SENTENCES]),
    processing_class=tiny.tokenizer(),
    peft_config=SelectiveConfig(density=0.05, batches=tiny.batches()[:4]),
)
trainer.train()
trainer.save_model("adapter")
for entry in trainer.state.log_history:
    if "loss" in entry:
        print(f"loss {float(entry['loss']):.4f}")
