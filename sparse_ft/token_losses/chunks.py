"""The logits of a head, a few tokens at a time, and the gradients that come of them."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .. import ops

CHUNK_BYTES = 32 << 20  # of fp32 logits at a time
# Of a GPU: so many tokens at least, a multiple of what a tile of its products has. Each chunk reads
# the head three times and launches some fifteen kernels: of 65 tokens, which 32 MB of 128 k classes
# would be, the head is most of what is read, and launches are all of the time.
GPU_TOKENS, GPU_TILE = 512, 128


# Whether tensors in host memory stand for those of a GPU, as in a dry run.
_stands_for_gpu = contextvars.ContextVar("_stands_for_gpu", default=False)


@contextlib.contextmanager
def standing_for(device: torch.device) -> Iterator[None]:
    """Meanwhile chunks in host memory have the sizes of those on `device`."""
    before = _stands_for_gpu.set(device.type != "cpu")
    try:
        yield
    finally:
        _stands_for_gpu.reset(before)


def takes_all_tokens(hidden: torch.Tensor) -> bool:
    """Whether tokens without a target are masked, not left out: on a GPU.

    To know how many there are the host would wait for the device, which no CUDA graph allows.
    """
    return hidden.device.type != "cpu" or _stands_for_gpu.get()


def rows_of_chunk(hidden: torch.Tensor, classes: int) -> int:
    """How many tokens' logits exist at a time."""
    rows = CHUNK_BYTES // (4 * classes)
    if not takes_all_tokens(hidden):
        return max(16, rows)
    return max(GPU_TOKENS, rows // GPU_TILE * GPU_TILE)


def wide_dtype(hidden: torch.Tensor) -> torch.dtype:
    """What losses are computed in: fp32, or fp64 for fp64."""
    return torch.promote_types(torch.float32, hidden.dtype)


def logits_of(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """[c, V] of hidden [c, H], weight [V, H] and bias [V], in the wide dtype."""
    added = None if bias is None else bias.to(hidden.dtype)
    logits = ops.dense_product(hidden, weight.to(hidden.dtype), added)
    return logits.to(wide_dtype(hidden))


class Chunk:
    """The tokens `rows` (a slice). hidden: [c, H]. logits: [c, V], wide, to be written over.

    ignored: [c, 1], which of them have no target; None where all do.
    """

    def __init__(
        self,
        rows: slice,
        hidden: torch.Tensor,
        logits: torch.Tensor,
        ignored: torch.Tensor | None = None,
    ) -> None:
        self.rows, self.hidden, self.logits = rows, hidden, logits
        self.ignored = ignored

    def counted(self, numbers: torch.Tensor) -> torch.Tensor:
        """numbers [c, 1], 0 for tokens without a target, whatever stood there."""
        return numbers if self.ignored is None else numbers.masked_fill(self.ignored, 0)

    @functools.cached_property
    def norm(self) -> torch.Tensor:
        """log(sum(exp(logits))), [c, 1]: to be asked for before the logits are written over."""
        return self.logits.logsumexp(1, keepdim=True)

    @property
    def norm_or_infinity(self) -> torch.Tensor:
        """`norm`, but for tokens without a target, whose probabilities it makes 0."""
        if self.ignored is None:
            return self.norm
        return self.norm.masked_fill(self.ignored, float("inf"))


def chunks(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    ignored: torch.Tensor | None = None,
) -> Iterator[Chunk]:
    """All tokens of hidden [n, H], in their order.

    ignored: [n], those without a target, whose hidden states count as 0, whatever they are.
    """
    step = rows_of_chunk(hidden, weight.size(0))
    for begin in range(0, hidden.size(0), step):
        part = hidden[begin : begin + step]
        rows = slice(begin, begin + part.size(0))
        without = None
        if ignored is not None:
            without = ignored[rows, None]
            part = part.masked_fill(without, 0)
        yield Chunk(rows, part, logits_of(part, weight, bias), without)


def entropy_of(logits: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """`-sum(p * log(p))` of each token, [c]. A class of probability 0 counts as nothing."""
    log_p = (logits - norm).clamp_(min=torch.finfo(logits.dtype).min)
    return log_p.exp().mul_(log_p).sum(1).neg_()


def _wide_zeros(like: torch.Tensor | None, needed: bool) -> torch.Tensor | None:
    if like is None or not needed:
        return None
    return torch.zeros_like(like, dtype=torch.promote_types(torch.float32, like.dtype))


class HeadGradients:
    """Of the sum of losses, for whichever of hidden, weight, bias and values need one.

    Filled chunk by chunk.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor | None,
        layout: Any,
        needs: Sequence[bool],
    ) -> None:
        self.weight, self.layout = weight, layout
        self.of_hidden = torch.empty_like(hidden) if needs[0] else None
        _, needs_weight, needs_bias, needs_values = needs
        self.of_weight = _wide_zeros(weight, needs_weight)
        self.of_bias = _wide_zeros(bias, needs_bias)
        self.of_values = _wide_zeros(values, needs_values)
        self.dtypes = [None if t is None else t.dtype for t in (hidden, weight, bias, values)]

    def add(self, begin: int, part: torch.Tensor, grad_logits: torch.Tensor) -> None:
        """part: [c, H]; grad_logits: [c, V], wide."""
        if self.of_bias is not None:
            self.of_bias += grad_logits.sum(0)
        grad_logits = grad_logits.to(part.dtype)
        if self.of_hidden is not None:
            weight, place = self.weight.to(part.dtype), self.of_hidden[begin : begin + part.size(0)]
            if ops.serves_dense(grad_logits, weight.T):
                place.copy_(ops.dense_product(grad_logits, weight.T))
            else:
                torch.mm(grad_logits, weight, out=place)
        if self.of_weight is not None:
            self.of_weight += grad_logits.T @ part
        if self.of_values is not None:
            ops.selected_wgrad_(self.of_values, grad_logits, part, self.layout)

    def all(self) -> list[torch.Tensor | None]:
        """In the dtypes of what they are for."""
        grads = (self.of_hidden, self.of_weight, self.of_bias, self.of_values)
        return [None if g is None else g.to(dtype) for g, dtype in zip(grads, self.dtypes)]
