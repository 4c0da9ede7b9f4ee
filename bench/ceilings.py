"""What this machine can do at best in this very run: copy and triad bandwidth, fp32 and bf16 GEMM rate."""

from dataclasses import dataclass

import torch

from bench.harness import interleave

ARRAY = 1 << 25  # fp32 elements of one array, 128 MiB: far over any cache


@dataclass(frozen=True)
class Ceilings:
    """copy, triad: bytes a second, counting each element read or written once. gemm: {dtype name: flop a second}."""

    copy: float
    triad: float
    gemm: dict

    def best(self, other):
        """The higher of two measurements of the same machine: a ceiling is what was ever reached."""
        gemm = {dtype: max(rate, other.gemm.get(dtype, 0.0)) for dtype, rate in self.gemm.items()}
        return Ceilings(max(self.copy, other.copy), max(self.triad, other.triad), gemm)


def measure(seconds=0.5, array=ARRAY, gemm=2048, dtypes=("float32",)):
    """Ceilings at the present thread count, from the fastest of a few interleaved rounds."""
    a, b, c = (torch.full((array,), float(i)) for i in range(3))
    variants = {"copy": lambda: a.copy_(b), "triad": lambda: torch.add(b, c, alpha=3.0, out=a)}
    flop = {}
    for name in dtypes:
        side = gemm if name == "float32" else gemm // 2  # without bf16 instructions a product of 2048 takes seconds
        left, right = (torch.randn(side, side).to(getattr(torch, name)) for _ in range(2))
        variants[name], flop[name] = lambda left=left, right=right: left.T @ right, 2 * side**3
    fastest = {name: min(rounds.values()) for name, rounds in interleave(variants, seconds, warm_up=1, most=20).items()}
    return Ceilings(
        2 * a.nbytes / fastest["copy"], 3 * a.nbytes / fastest["triad"], {name: flop[name] / fastest[name] for name in dtypes}
    )
