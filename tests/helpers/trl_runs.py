"""TRL's trainers on a tiny model: a tokenizer of letters, pairs and prompts, runs of a few steps.

`make test` puts trl, datasets and diffusers, with what they need, into a folder of their own beside
site-packages: they bring much along, and only the tests of trainers look there.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(sys.prefix) / "trl"
LETTERS = "abcdefghijklmnopqrstuvwxyz ."
STEPS = 3


def make_importable(*names: str) -> None:
    """Put the folder at the end of the path; skip the test module where a package is in neither."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    for name in names:
        pytest.importorskip(name)


def tokenizer() -> Any:
    """One token a letter."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, *LETTERS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = dict(zip(("pad_token", "eos_token", "unk_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=letters, **names)


def language_model(folder: Path) -> Any:
    """A tiny Llama, as it lies in `folder`; GRPO loads its reference from there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=3 + len(LETTERS),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder)


def arguments(folder: Path, checkpointing: bool, **more: Any) -> dict[str, Any]:
    """What the configs of all trainers here have in common."""
    return dict(
        output_dir=str(folder / "out"),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        gradient_checkpointing=checkpointing,
        **more,
    )


def dpo(model: Any, folder: Path, checkpointing: bool, **more: Any) -> Any:
    """A run of TRL's DPO; more: peft_config, ref_model."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {"prompt": f"{a} and ", "chosen": f"{b} is good.", "rejected": f"{c} is not."}
        for a, b, c in zip("abcdefgh", "ijklmnop", "qrstuvwx")
    ]
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**arguments(folder, checkpointing), max_length=32),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        **more,
    )
    trainer.train()
    return trainer


def vowels(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def grpo(
    model: Any, folder: Path, checkpointing: bool, reward: Callable = vowels, **more: Any
) -> Any:
    """A run of TRL's GRPO, rewarded for vowels; more: peft_config."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        **arguments(folder, checkpointing, num_generations=2, max_completion_length=8, beta=0.1)
    )
    rows = [{"prompt": f"{a} and "} for a in "abcdefgh"]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        **more,
    )
    trainer.train()
    return trainer


def sft_run(model: Any, folder: Path, checkpointing: bool, **more: Any) -> Any:
    """A run of TRL's SFT on a few sentences; more: peft_config."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"text": f"the {a} is before the {b}."} for a, b in zip("abcdefgh", "bcdefghi")]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(folder, checkpointing), max_length=32),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        **more,
    )
    trainer.train()
    return trainer


def losses_of(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
