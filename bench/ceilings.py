"""What a machine can do at best in this very run: copy and triad bandwidth, GEMM rates, cache.

A GEMM rate is that of the fastest product at hand: a share of a roofline is no more than 1 because
torch's is slow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from bench.device import captured, rounds
from sparse_ft import ops
from sparse_ft.ops import _native, _onednn

ARRAY = 1 << 25  # fp32 elements of one array, 128 MiB: far over any cache
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ceilings:
    """copy, triad: bytes a second of memory, counting each element read or written once.

    gemm: {dtype name: flop a second}. by: {dtype name: whose product that was}.
    l2: bytes a second of a GPU's cache.
    """

    copy: float
    triad: float | None
    gemm: dict
    by: dict = field(default_factory=dict)
    l2: float | None = None

    def best(self, other: "Ceilings") -> "Ceilings":
        """The higher of two measurements of the same CPU: a ceiling is what was ever reached."""
        gemm, by = dict(self.gemm), dict(self.by)
        for dtype in gemm:
            if other.gemm.get(dtype, 0.0) > gemm[dtype]:
                gemm[dtype], by[dtype] = other.gemm[dtype], other.by.get(dtype, "")
        return Ceilings(max(self.copy, other.copy), max(self.triad, other.triad), gemm, by)


def products(
    side: int, dtype: torch.dtype, device: torch.device = CPU
) -> dict[str, Callable[[], torch.Tensor]]:
    """{whose: call} of the products of two square matrices that this machine has."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    found = {"torch": lambda: left.T @ right}
    if dtype != torch.float32 or device.type != "cpu":
        return found
    every, linear = torch.arange(side, dtype=torch.int32), _onednn.find_linear()
    if _native.C is not None:
        found["panels"] = lambda: ops.selected_wgrad(left, right, "columns", every, 1, 1)
    if linear is not None:
        found["oneDNN"] = lambda: linear(left, right, None, "none", [], "")
    return found


def measure(
    seconds: float = 0.5,
    array: int = ARRAY,
    gemm: int = 2048,
    dtypes: tuple[str, ...] = ("float32",),
    device: torch.device = CPU,
    cached: tuple[int, int] | None = None,
    most: int = 20,
) -> Ceilings:
    """Ceilings at the present thread count, from the fastest of a few interleaved rounds.

    array: elements of what is copied; gemm: side of the matrices; most: rounds. cached: (elements
    of a small array, copies of it from one graph, gaps between them included).
    """
    a, b, c = (torch.full((array,), float(i), device=device) for i in range(3))
    calls = {"copy": lambda: a.copy_(b), "triad": lambda: torch.add(b, c, alpha=3.0, out=a)}
    work = {"copy": 2 * a.nbytes, "triad": 3 * a.nbytes}
    if cached:
        count, times = cached
        few = [torch.randn(count, device=device) for _ in range(2)]
        calls["l2"] = captured(lambda: few[0].copy_(few[1]), device, times)
        work["l2"] = times * 2 * few[0].nbytes
    whose = {}
    for name in dtypes:
        # Without bf16 instructions a product of 2048 takes seconds on a CPU.
        side = gemm // 2 if name != "float32" and device.type == "cpu" else gemm
        made = products(side, getattr(torch, name), device)
        whose[name] = {f"{name} by {who}": who for who in made}
        calls |= dict(zip(whose[name], made.values()))
        work |= dict.fromkeys(whose[name], 2 * side**3)
    found = rounds(calls, device, seconds, warm_up=1, most=most)
    rate = {name: work[name] / min(samples.values()) for name, samples in found.items()}
    best = {name: max(mine, key=rate.get) for name, mine in whose.items()}
    return Ceilings(
        rate["copy"],
        rate["triad"],
        {name: rate[call] for name, call in best.items()},
        {name: whose[name][call] for name, call in best.items()},
        rate.get("l2"),
    )
