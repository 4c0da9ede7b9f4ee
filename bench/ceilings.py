"""What this machine can do at best in this very run: copy and triad bandwidth, fp32 and bf16 GEMM rate.

A GEMM rate is that of the fastest product at hand: a share of a roofline is no more than 1 because torch's is slow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.harness import interleave
from sparse_ft import ops
from sparse_ft.ops import _native, _onednn

ARRAY = 1 << 25  # fp32 elements of one array, 128 MiB: far over any cache


@dataclass(frozen=True)
class Ceilings:
    """copy, triad: bytes a second, counting each element read or written once. gemm: {dtype name: flop a second}, by: {dtype
    name: whose product that was}."""

    copy: float
    triad: float
    gemm: dict
    by: dict = field(default_factory=dict)

    def best(self, other: "Ceilings") -> "Ceilings":
        """The higher of two measurements of the same machine: a ceiling is what was ever reached."""
        gemm, by = dict(self.gemm), dict(self.by)
        for dtype in gemm:
            if other.gemm.get(dtype, 0.0) > gemm[dtype]:
                gemm[dtype], by[dtype] = other.gemm[dtype], other.by.get(dtype, "")
        return Ceilings(max(self.copy, other.copy), max(self.triad, other.triad), gemm, by)


def products(side: int, dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
    """{whose: call} of the products of two square matrices that this machine has."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    found = {"torch": lambda: left.T @ right}
    if dtype != torch.float32:
        return found
    every, linear = torch.arange(side, dtype=torch.int32), _onednn.find_linear()
    if _native.C is not None:
        found["panels"] = lambda: ops.selected_wgrad(left, right, "columns", every, 1, 1)
    if linear is not None:
        found["oneDNN"] = lambda: linear(left, right, None, "none", [], "")
    return found


def measure(seconds=0.5, array=ARRAY, gemm=2048, dtypes=("float32",)) -> Ceilings:
    """Ceilings at the present thread count, from the fastest of a few interleaved rounds."""
    a, b, c = (torch.full((array,), float(i)) for i in range(3))
    variants = {"copy": lambda: a.copy_(b), "triad": lambda: torch.add(b, c, alpha=3.0, out=a)}
    flop, whose = {}, {}
    for name in dtypes:
        side = gemm if name == "float32" else gemm // 2  # without bf16 instructions a product of 2048 takes seconds
        flop[name], calls = 2 * side**3, products(side, getattr(torch, name))
        whose[name] = list(calls)
        variants |= {f"{name} by {who}": call for who, call in calls.items()}
    fastest = {name: min(rounds.values()) for name, rounds in interleave(variants, seconds, warm_up=1, most=20).items()}
    by = {name: min(found, key=lambda who, name=name: fastest[f"{name} by {who}"]) for name, found in whose.items()}
    rates = {name: flop[name] / fastest[f"{name} by {by[name]}"] for name in dtypes}
    return Ceilings(2 * a.nbytes / fastest["copy"], 3 * a.nbytes / fastest["triad"], rates, by)
