"""What the host takes to enqueue a step and a layer on a GPU, beside torch's own.

python -m bench.host_time [--device cuda] [--weights 112] [--size 1024]

Steps of SelectiveAdamW over as many weights as `--weights` says beside torch's fused AdamW, and the
forward and backward of one selective layer beside those of nn.Linear, in bfloat16: CPU seconds of
this process, the variants in turn, so that each finds the caches full of the others' as it would of
a model's. Before each the device has nothing left to do. Prints the least and the median of the
rounds, and their ratios to torch's. On a CPU, where kernels run on the host, small sizes say what
calls take.
"""

import argparse
import gc
import time
from collections.abc import Callable

import torch
from torch import nn

import sparse_ft as sft
from bench.arguments import positive
from bench.cases import selection
from sparse_ft.texts import aligned

Call = Callable[[], object]
# {variant: (kind of selection, share)}. Few entries are dot products, many are taken from strips of
# the dense product.
KINDS = {
    "columns, 1.6 %": ("columns", 1 / 64),
    "rows, 1.6 %": ("rows", 1 / 64),
    "entries, 0.1 %": ("entries", 0.001),
    "entries, 1.6 %": ("entries", 1 / 64),
    "blocks, 1.6 %": ("blocks", 1 / 64),
}
TOKENS = 512
LAYER_REPEATS = 5  # of a layer, whose backward wakes another thread at its first call
FUSED, LINEAR = "AdamW, fused", "nn.Linear"
HEAD = ("", "least, us", "of torch's", "median, us", "of torch's")


def layers(variant: str, count: int, size: int, device: str) -> nn.Sequential:
    """Linear layers [size, size] without a bias. variant: one of `KINDS`, or `LINEAR`: plain."""
    made = [
        nn.Linear(size, size, bias=False, device=device, dtype=torch.bfloat16) for _ in range(count)
    ]
    model = nn.Sequential(*made)
    if variant != LINEAR:
        kind, share = KINDS[variant]
        block = max(1, size // 16)
        chosen = selection(kind, (size, size), share, block=block).to(device)
        sft.convert(model, {f"{number}.weight": chosen for number in range(count)})
    return model


def steps(count: int, size: int, device: str) -> dict[str, Call]:
    """{variant: one step over `count` tensors}."""
    calls: dict[str, Call] = {}
    dense = [nn.Parameter(torch.zeros(size, size // 64 + 1, device=device)) for _ in range(count)]
    calls[FUSED] = torch.optim.AdamW(_grown(dense), fused=True).step
    for variant in KINDS:
        model = layers(variant, count, size, device)
        trained = [p for p in model.parameters() if p.requires_grad]
        calls[variant] = _holding(model, sft.SelectiveAdamW(_grown(trained)).step)
    return calls


def _grown(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    for p in parameters:
        p.grad = torch.zeros_like(p)
    return parameters


def _holding(model: nn.Module, call: Call) -> Call:
    """`call`, which keeps the model alive: an optimiser does not."""
    return lambda: (call(), model)


def products(size: int, device: str) -> dict[str, Call]:
    """{variant: forward and backward of one layer}."""
    return {
        variant: _forward_and_backward(layers(variant, 1, size, device)[0], size, device)
        for variant in (LINEAR, *KINDS)
    }


def _forward_and_backward(layer: nn.Module, size: int, device: str) -> Call:
    input = torch.zeros(TOKENS, size, device=device, dtype=torch.bfloat16, requires_grad=True)
    grad_output = torch.zeros_like(input)
    parameters = list(layer.parameters())

    def call() -> None:
        layer(input).backward(grad_output)
        input.grad = None
        for p in parameters:
            p.grad = None

    return call


def measured(
    calls: dict[str, Call], rounds: int, repeats: int, device: str
) -> dict[str, list[float]]:
    """{variant: CPU seconds of a call in each round, the least first}. repeats: calls in a row."""
    for call in calls.values():
        for _ in range(3):  # makes states, and compiles
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                _wait(device)
                start = time.process_time()
                for _ in range(repeats):
                    call()
                found[name].append((time.process_time() - start) / repeats)
    finally:
        gc.enable()
    return {name: sorted(seconds) for name, seconds in found.items()}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def table(found: dict[str, list[float]], of: str) -> list[tuple[str, ...]]:
    """Rows of text, the head first. of: the variant that the ratios are to."""
    rows: list[tuple[str, ...]] = [HEAD]
    least_of, median_of = found[of][0], found[of][len(found[of]) // 2]
    for name, seconds in found.items():
        least, median = seconds[0], seconds[len(seconds) // 2]
        in_us, median_in_us = f"{1e6 * least:.1f}", f"{1e6 * median:.1f}"
        rows.append(
            (name, in_us, f"{least / least_of:.2f}", median_in_us, f"{median / median_of:.2f}")
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    on_gpu = torch.cuda.is_available()
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parse.add_argument("--weights", type=positive, default=112)
    parse.add_argument("--size", type=int, help="default: 1024, on a CPU 64")
    parse.add_argument("--rounds", type=positive, default=100)
    given = parse.parse_args(arguments)
    torch.set_num_threads(1)
    size = given.size or (64 if given.device == "cpu" else 1024)

    def show(title: str, calls: dict[str, Call], repeats: int, of: str) -> None:
        rows = table(measured(calls, given.rounds, repeats, given.device), of)
        print(f"{title}, {size} x {size}, {given.device}")
        print("\n".join(aligned(rows)), flush=True)

    show(f"a step over {given.weights} weights", steps(given.weights, size, given.device), 1, FUSED)
    of_layer = f"forward and backward of a layer, {TOKENS} tokens"
    show(of_layer, products(size, given.device), LAYER_REPEATS, LINEAR)


if __name__ == "__main__":
    main()
