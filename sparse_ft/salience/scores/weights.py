"""Scores that look at weights alone: no batch is run."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from ...messages import described
from ..job import Job, Matrices
from ..score import Matrix

Rate = Callable[[str, Matrix, torch.Generator], Matrix]


@dataclasses.dataclass(frozen=True)
class OfWeights:
    """A score of one weight: `rate(name, W, generator) -> score`, all [rows, columns]."""

    name: str
    rate: Rate

    needs_batches = False
    absolute = False

    def source(self, job: Job) -> "Source":
        return Source(self, job)


class Source:
    """Scores of one weight after the other, computed when they are asked for."""

    reduced = False

    def __init__(self, score: OfWeights, job: Job):
        self.absolute = score.absolute
        self._score, self._matrices, self._seed = score, Matrices(job), job.seed

    def scores(self, last: bool = True) -> Iterator[tuple[str, Matrix]]:
        """(name, score) of every weight; the same each time."""
        generator = torch.Generator().manual_seed(self._seed)
        for name, weight in self._matrices:
            yield name, self._score.rate(name, weight, generator)


def random() -> OfWeights:
    """Uniform in [0, 1), seeded: the baseline of S2FT, PaCA, SHiRA, HFT."""

    def rate(name: str, weight: Matrix, generator: torch.Generator) -> Matrix:
        return torch.rand(weight.shape, generator=generator, dtype=torch.float32, device="cpu")

    return OfWeights("random", rate)


def magnitude(top: bool = True) -> OfWeights:
    """|W| (NeuroAda); with top=False the smallest first (Super-Tuning)."""

    def rate(name: str, weight: Matrix, generator: torch.Generator) -> Matrix:
        return weight.abs() if top else weight.abs().neg_()

    return OfWeights("magnitude" if top else "magnitude_bottom", rate)


def principal(rank: int = 8, iterations: int = 4) -> OfWeights:
    """|W_r|, W_r being the part of W that its `rank` largest singular values make (LIFT).

    A randomised SVD, seeded, with `iterations` power iterations. Where singular values fall as
    1/√i, 99 % of the best entries are those of the exact one at 4, 91 % at
    2, 43 % at 0; where they hardly fall, fewer: raise it. Computed in fp32 (fp64 for a weight in
    fp64). Raises ValueError for a rank below 1.
    """
    if not (isinstance(rank, int) and rank > 0):
        raise ValueError(f"rank: expected a positive int, got {rank!r}")

    def rate(name: str, weight: Matrix, generator: torch.Generator) -> Matrix:
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        left, sizes, right = _largest_singular(wide, rank, iterations, generator)
        return ((left * sizes) @ right).abs_()

    return OfWeights("principal", rate)


def _largest_singular(
    matrix: Matrix, rank: int, iterations: int, generator: torch.Generator
) -> tuple[Matrix, torch.Tensor, Matrix]:
    """U [rows, r], S [r], Vᵀ [r, columns] (Halko et al.

    2011, algorithm 4.4), with a few directions more than asked for while it looks for them.
    """
    smaller = min(matrix.shape)
    rank = min(rank, smaller)
    directions = min(smaller, rank + 8)
    drawn = torch.randn(
        matrix.size(1), directions, generator=generator, dtype=torch.float64, device="cpu"
    )
    basis = torch.linalg.qr(matrix @ drawn.to(matrix)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    left, sizes, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :rank], sizes[:rank], right[:rank]


def movement(base: Mapping[str, torch.Tensor] | nn.Module) -> OfWeights:
    """|W − W_base|: how far training has moved the entry (LT-SFT, FedSelect).

    base: the model before, or its state: {parameter name: tensor}. Raises TypeError for anything
    else; a weight that it lacks is named when `select` comes to it.
    """
    if isinstance(base, nn.Module):
        base = dict(base.named_parameters())
    if not isinstance(base, Mapping):
        raise TypeError(
            f"base: expected a model or a mapping {{name: tensor}}, got {described(base)}"
        )

    def rate(name: str, weight: Matrix, generator: torch.Generator) -> Matrix:
        before = _of_base(base, "base", name, weight).detach().to(weight)
        return (weight - before.reshape(weight.shape)).abs_()

    return OfWeights("movement", rate)


def given(scores: Mapping[str, torch.Tensor]) -> OfWeights:
    """The scores that the user has computed: {parameter name: tensor}, as large as the weight."""

    def rate(name: str, weight: Matrix, generator: torch.Generator) -> Matrix:
        score = _of_base(scores, "score", name, weight).detach().reshape(weight.shape)
        if score.is_complex():
            raise TypeError(f"score: expected real numbers for {name!r}, got {described(score)}")
        return score.float() if score.dtype == torch.bool else score

    return OfWeights("a mapping", rate)


def _of_base(
    mapping: Mapping[str, torch.Tensor], argument: str, name: str, weight: Matrix
) -> torch.Tensor:
    """mapping[name], checked to be a tensor of the weight's size."""
    if name not in mapping:
        raise ValueError(
            f"{argument}: it has nothing for {name!r}; leave that out with targets=, or add it"
        )
    tensor = mapping[name]
    if not isinstance(tensor, torch.Tensor) or tensor.numel() != weight.numel():
        raise ValueError(
            f"{argument}: expected a tensor of {weight.numel()} numbers for {name!r}, got"
            f" {described(tensor)}"
        )
    if tensor.dim() == 2 and tensor.shape != weight.shape:
        raise ValueError(
            f"{argument}: expected shape {list(weight.shape)} for {name!r}, got"
            f" {list(tensor.shape)}"
        )
    return tensor
