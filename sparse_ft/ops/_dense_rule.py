"""Who serves large fp32 products: a rule by processor and dtype.

torch hands fp32 products on a CPU to MKL, which takes its AVX2 path on AMD processors, whatever
these have. Measured, GFLOP/s of one thread:

    Zen 5, 2048 x 2048 x 2048     torch 105   panels 203        oneDNN 237
    Zen 4, 128 x 384 x 384        torch 98    panels 103 (106)  oneDNN 100 (105)
    Zen 4, 2048 x 384 x 384       torch 94    (to the input)    oneDNN 105 (106)

The panels are this library's own, those of `selected_wgrad`. They come before oneDNN because their
error is torch's: oneDNN's sums are long, and have to be cut (`_onednn.INNER_AT_ONCE`). Elsewhere,
and in every other dtype, nothing was measured that torch's own product loses to.
"""

import functools
from typing import NamedTuple

import torch

from .._torch import is_compiling
from . import _native, _onednn
from ._library import plain
from ._processor import is_amd_with_avx512, processor

# A product of fewer rows waits for the weight's memory, whoever computes it.
LEAST_ROWS = 32
# Multiplications below which the call costs more than the rate gains: 5 µs, and 27 for oneDNN's.
LEAST_MULTIPLICATIONS = {"panels": 1 << 22, "onednn": 1 << 24}


class Choice(NamedTuple):
    """Who serves large fp32 products on a CPU, "panels", "onednn" or "torch", and why."""

    library: str
    why: str


def choose(facts: dict[str, str], has_panels: bool, linear: _onednn.Linear | None) -> Choice:
    """The rule. facts: of `processor`. linear: oneDNN's, or None."""
    if not is_amd_with_avx512(facts):
        return Choice("torch", "no AMD processor with AVX-512: torch's own product is fastest")
    why = "AMD with AVX-512, where torch's product stays on AVX2"
    if has_panels:
        return Choice("panels", why)
    if linear is not None:
        return Choice("onednn", f"{why}; the compiled part, which is more exact, is missing")
    return Choice("torch", "the compiled part is missing, and this torch has no oneDNN product")


@functools.cache
def choice() -> Choice:
    """`choose` for this machine and install."""
    facts, has_panels = processor(), _native.C is not None
    needs_onednn = is_amd_with_avx512(facts) and not has_panels
    return choose(facts, has_panels, _onednn.find_linear() if needs_onednn else None)


def server(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str:
    """Who serves this product: what it depends on does not change while a program runs."""
    if input.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return "torch"
    if is_compiling():
        return "torch"
    library = choice().library
    if library == "torch" or weight.dim() != 2 or input.dim() == 0:
        return "torch"
    features = weight.size(1)
    if input.size(-1) != features or input.numel() < LEAST_ROWS * features:
        return "torch"
    if input.numel() * weight.size(0) < LEAST_MULTIPLICATIONS[library]:
        return "torch"
    stored_by_lines = weight.stride(1) == 1 or weight.stride(0) == 1
    if not (stored_by_lines and input.is_contiguous()):
        return "torch"
    if bias is not None and not (bias.dtype is torch.float32 and bias.is_contiguous()):
        return "torch"
    tensors = (input, weight) if bias is None else (input, weight, bias)
    return library if plain(tensors) and not torch.is_autocast_enabled("cpu") else "torch"
