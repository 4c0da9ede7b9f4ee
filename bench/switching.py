"""How long it takes to put a delta into a model and to take it out, beside PEFT's LoRA.

`python -m bench.switching [--density 0.01] [--cycles 15]`.

Protocol: an encoder of MiniLM's shape (22 M parameters, random weights, fp32), single entries of
all its linear layers at random; LoRA of rank 8 on the same layers, merged and unmerged. The methods
take turns, cycle by cycle; medians of the wall clock. "first" also takes the fingerprint of the
base. Then the share of the weights' entries whose bits are others after all cycles.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import sparse_ft as sft
from sparse_ft.texts import aligned

TARGETS = ["query", "key", "value", "dense"]


def encoder() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=30522,
    )
    return BertModel(config).eval()


def delta_of(density: float) -> sft.Delta:
    """A delta of an encoder whose selected entries have moved a little."""
    model = encoder()
    names = [f"*{target}.weight" for target in TARGETS]
    plan = sft.select(model, density=density, structure="entries", score="random", targets=names)
    sft.convert(model, plan)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1e-3
    return sft.Delta.of(model)


def with_lora() -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(encoder(), LoraConfig(r=8, target_modules=TARGETS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    return model


def weights_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """The weights that both methods change, as they lie in memory."""
    return [
        parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.removesuffix(".weight").removesuffix(".base_layer").endswith(tuple(TARGETS))
    ]


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> float:
    """The share of entries whose bits are others."""
    bits = [(a.view(torch.int32) != b.view(torch.int32)) for a, b in zip(before, after)]
    return sum(int(each.sum()) for each in bits) / sum(each.numel() for each in bits)


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--cycles", type=int, default=15)
    given = parser.parse_args(arguments)
    base, lora, delta = encoder(), with_lora(), delta_of(given.density)
    calls = {
        "apply": lambda: sft.apply(base, delta),
        "remove": lambda: sft.remove(base),
        "LoRA merge": lora.merge_adapter,
        "LoRA unmerge": lora.unmerge_adapter,
    }
    before, lora_before = weights_of(base), weights_of(lora)
    first = {name: milliseconds(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(given.cycles):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    rows = [("", "median ms", "first ms")]
    rows += [(n, f"{statistics.median(t):.1f}", f"{first[n]:.1f}") for n, t in times.items()]
    print("\n".join(aligned(rows, numbers=(1, 2))))
    ours, theirs = changed(before, weights_of(base)), changed(lora_before, weights_of(lora))
    cycles = given.cycles + 1
    print(f"entries whose bits are others after {cycles} cycles: {ours:.2%}, LoRA's {theirs:.2%}")


if __name__ == "__main__":
    main()
