"""What is measured: cases, shapes of real models' layers, and selections of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import sparse_ft as sft
from sparse_ft.salience.units import rounded

# {model: {layer: (out, in)}}, the weights of one block
SHAPES = {
    "BERT-base": {"attention": (768, 768), "ffn up": (3072, 768), "ffn down": (768, 3072)},
    "ViT-B": {"attention": (768, 768), "ffn up": (3072, 768), "ffn down": (768, 3072)},
    "Llama-1B": {
        "q, o": (2048, 2048),
        "k, v": (512, 2048),
        "gate, up": (8192, 2048),
        "down": (2048, 8192),
    },
    "Llama-8B": {
        "q, o": (4096, 4096),
        "k, v": (1024, 4096),
        "gate, up": (14336, 4096),
        "down": (4096, 14336),
    },
}
# Tokens of one training batch.
TOKENS = {"BERT-base": 32 * 128, "ViT-B": 16 * 197, "Llama-1B": 2 * 512, "Llama-8B": 512}

# A weight of 32 M entries, that of the optimiser's anchors: over any cache in every dtype.
LARGE = (4096, 8192)
GPU_LARGE = (8192, 16384)  # 1 % of it fills the chip
SQUARE, GPU_TOKENS = (4096, 4096), 8192
_1B = SHAPES["Llama-1B"]
LAYER_1B = [_1B[name] for name in ("q, o", "k, v", "k, v", "q, o", "gate, up", "gate, up", "down")]
GPU_LAYER_TOKENS = 2048
GPU_OTHERS = {
    "Llama-8B gate": SHAPES["Llama-8B"]["gate, up"],
    "Llama-3B gate": (8192, 3072),
    "Llama-1B k": _1B["k, v"],
}
BLOCK = 64  # entries on a side of a block


@dataclass(frozen=True)
class Case:
    """One thing to measure, on a CPU or a GPU.

    A benchmark file gives the variants of its cases; a GPU's case brings its own.
    phases: of its floor, see gpu_floors.py. make: device -> gpu_cases.Work.
    promise: ({variant: seconds}, floor, ceilings) -> (what it says, most seconds of ours).
    tolerance: of the relative error in norm; the default is that of bf16 operands.
    """

    name: str
    kind: str = ""  # rows, columns, blocks, entries, or what the case is about
    density: float = 1.0
    dtype: str = "float32"
    shape: tuple = (0, 0)  # rows, columns of the matrix
    tokens: int = 0
    seconds: float = 1.0  # budget at one thread count
    phases: Sequence = ()
    make: Callable | None = None
    promise: Callable | None = None
    tolerance: float = 1e-2


def pick(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """A sorted random sample of range(count), int64, on the generator's device.

    Exactly the share of a short range, a coin for each of a long one.
    """
    drawn = {"generator": generator, "device": generator.device}
    if share >= 1:
        return torch.arange(count, device=generator.device)
    if count < 1 << 20:
        return torch.randperm(count, **drawn)[: max(1, round(share * count))].sort().values
    return (torch.rand(count, **drawn) < share).nonzero().squeeze(1)


def _lines(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """As many rows or columns as `sft.select` takes: the library's products of them are aligned."""
    kept = rounded(max(1, round(share * count)), count)
    return pick(count, kept / count, generator)


def selection(
    kind: str,
    shape: tuple[int, int],
    density: float,
    block: int = BLOCK,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> sft.Selection:
    """A random selection of `kind` of a matrix of `shape`, of the share `density`, drawn on a
    device: each device draws its own.
    """
    generator = torch.Generator(device).manual_seed(seed)
    if kind == "entries":
        return sft.Entries(pick(shape[0] * shape[1], density, generator))
    if kind in ("rows", "columns"):
        structure = sft.Rows if kind == "rows" else sft.Columns
        return structure(_lines(shape[structure.dim], density, generator))
    if kind == "blocks":
        grid = -(-shape[0] // block), -(-shape[1] // block)
        flat = pick(grid[0] * grid[1], density, generator)
        return sft.Blocks(torch.stack([flat // grid[1], flat % grid[1]], 1), block)
    raise ValueError(f"kind: expected rows, columns, blocks or entries, got {kind!r}")
