"""TRL's DPO; the reference is the same model without its adapter. python …/trl_dpo.py"""

import tiny
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from sparse_ft.peft import SelectiveConfig

pairs = [("the cat", " slept on the mat .", " ran far away ."), ("a dog", " sat .", " ran .")] * 8
names = "prompt", "chosen", "rejected"
trainer = DPOTrainer(
    model=tiny.model(),
    args=DPOConfig(
        "run",
        learning_rate=1e-2,
        num_train_epochs=5,
        per_device_train_batch_size=4,
        logging_steps=1,
        bf16=False,
        report_to=[],
    ),
    train_dataset=Dataset.from_list([dict(zip(names, pair)) for pair in pairs]),
    processing_class=tiny.tokenizer(),
    peft_config=SelectiveConfig(density=0.05, batches=tiny.batches()[:4]),
)
trainer.train()
print(*(f"loss {float(e['loss']):.4f}" for e in trainer.state.log_history if "loss" in e), sep="\n")
