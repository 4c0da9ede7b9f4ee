"""What a training step moves between devices, by structure: the tables of docs/scaling.md.

`python -m bench.scaling` writes them there; some minutes, and no weights: the step of each model is
run on tensors without data (`sft.estimate`).

bf16 weights, fp32 values, a batch of one sequence of 2,048 tokens on each device; GB (10^9 bytes)
that one device sends in a step, and receives, as rings do it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import sparse_ft as sft
from bench.readme import fill
from bench.table import markdown, number
from sparse_ft.memory import Traffic

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
DEVICES = {
    "ddp": (8, 16, 32, 64, 128, 256, 512),
    "fsdp2": (8, 16, 32, 64, 128, 256, 512),
    "tensor_parallel": (2, 4, 8),
}
TITLES = {"ddp": "DistributedDataParallel", "fsdp2": "FSDP2", "tensor_parallel": "Tensor parallel"}
PLANS: dict[str, Any] = {
    "everything": None,
    "columns, 1 %": {"structure": "columns", "density": 0.01},
    "rows, 1 %": {"structure": "rows", "density": 0.01},
    "blocks of 16 x 16, 1 %": {"structure": "blocks", "density": 0.01, "block_size": (16, 16)},
    "entries, 1 %": {"structure": "entries", "density": 0.01},
    "entries, 0.1 %": {"structure": "entries", "density": 0.001},
}


def llama(hidden: int, ffn: int, layers: int, heads: int) -> Any:
    """The config of a Llama 3 of that size."""
    import torch
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
    )


MODELS: dict[str, Callable[[], Any]] = {
    "8B": lambda: llama(4096, 14336, 32, 32),
    "70B": lambda: llama(8192, 28672, 80, 64),
}


def traffic_of(config: Any, plan: Any, sequence_length: int = 2048) -> Traffic:
    """What each strategy moves, on any number of devices."""
    told = sft.estimate(config, plan, 1, sequence_length, optimizer="sgd", world_size=2).traffic
    assert told is not None
    return told


def sections(traffic: dict[tuple[str, str], Traffic]) -> dict[str, str]:
    """{strategy: its table} of {(model, what trains): traffic}."""
    found = {}
    for strategy, devices in DEVICES.items():
        rows = []
        for (model, what), told in traffic.items():
            sent = [told.on(count, strategy).sent / 1e9 for count in devices]
            rows.append([f"{model}, {what}", *map(number, sent)])
        headings = ["GB a device sends in a step", *(f"{count}" for count in devices)]
        found[strategy] = f"{TITLES[strategy]}, by devices:\n\n{markdown(headings, rows)}"
    return found


def main() -> None:
    traffic = {}
    for model, config in MODELS.items():
        for what, plan in PLANS.items():
            traffic[model, what] = traffic_of(config(), plan)
            print(f"{model}, {what}: done", flush=True)
    PAGE.write_text(fill(PAGE.read_text(), sections(traffic)))
    print(f"{PAGE}: written")


if __name__ == "__main__":
    main()
