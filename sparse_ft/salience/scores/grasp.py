"""grasp: how an entry changes the gradient's own size, by second derivatives."""

import dataclasses
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..collecting import GradientSource
from ..job import Job
from ..score import Matrix
from ..untouched import Untouched, untouched
from .gradients import gradient


@dataclasses.dataclass(frozen=True)
class Grasp:
    """−W · (H g), g being the mean gradient and H the mean Hessian over the batches (GraSP, SPEFT).

    as_released: +W · (H g), which is what SPEFT's code has. Two runs over the batches, the second
    with a second derivative: two accumulators a target, and beside the graph of a double backward
    the gradients of all targets at once, which no other score holds. What has no second derivative
    (reentrant checkpoints, compiled attention) raises; torch's attention runs in plain mathematics.
    """

    as_released: bool = False

    name = "grasp"
    needs_batches = True

    def source(self, job: Job) -> "GraspSource":
        return GraspSource(self, job)


class GraspSource:
    """Scores by a Hessian-vector product."""

    reduced = absolute = False

    def __init__(self, score: Grasp, job: Job):
        if job.accumulate != "device":
            raise ValueError(
                f"accumulate: score='grasp' holds the gradients of all targets by nature, and"
                f" {job.accumulate!r} would not help; use 'device'"
            )
        self._sign = 1.0 if score.as_released else -1.0
        self._job = job
        self._first = GradientSource(gradient(), job)
        self._first.reduced = False
        self._held: dict[str, Matrix] | None = None

    def scores(self, last: bool = True) -> Iterator[tuple[str, Matrix]]:
        """(name, score) of every weight."""
        if self._held is None:
            untouched(self._job.model, lambda saved: self._job.known_batches.keep())
            means = dict(self._first.scores())
            self._held = self._products(means)
        for name in list(self._held):
            yield name, self._held.pop(name) if last else self._held[name]

    def _products(self, means: dict[str, Matrix]) -> dict[str, Matrix]:
        """{name: ∓W · (H g)}."""
        job = self._job
        job.ranks.begin()
        products = {name: torch.zeros_like(mean) for name, mean in means.items()}
        seen = untouched(job.model, lambda saved: self._run(saved, means, products))
        job.ranks.agree({"second derivatives": "#"})
        seen = sum(job.ranks.exchange(seen)) if job.ranks.size > 1 else seen
        for name, product in products.items():
            weight = job.weights[name].detach().reshape(product.shape)
            total = job.ranks.sum_(product)
            total.mul_(weight).mul_(self._sign / seen)
        return products

    def _run(self, saved: Untouched, means: dict, products: dict) -> int:
        collecting = saved.stand_ins(self._job.weights)
        names, weights = list(collecting), list(collecting.values())
        seen = 0
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            for batch in self._job.followed("second derivatives of batches"):
                loss = self._job.loss(self._job.model, batch)
                first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
                size = sum(
                    (one * means[name].view_as(one)).sum()
                    for name, one in zip(names, first)
                    if one is not None
                )
                second = torch.autograd.grad(size, weights, allow_unused=True)
                for name, one in zip(names, second):
                    if one is not None:
                        products[name].add_(one.reshape(products[name].shape))
                seen += 1
        return seen


def grasp(as_released: bool = False) -> Grasp:
    """See `Grasp`."""
    return Grasp(as_released)
