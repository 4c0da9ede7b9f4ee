"""Scores of the gradients that a backward gives: how the loss depends on each entry."""

import torch

from ..score import Matrix, Score


def _add(acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> None:
    acc.add_(gradient)


def _add_size(acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> None:
    acc.add_(gradient.abs_())


def _add_square(acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> None:
    acc.addcmul_(gradient, gradient)


def _add_product(acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> None:
    acc.addcmul_(weight, gradient)


def _subtract_product(acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> None:
    acc.addcmul_(weight, gradient, value=-1)


def _add_product_squared(acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> None:
    product = gradient.mul_(weight)
    acc.addcmul_(product, product)


def gradient() -> Score:
    """|E g|: the size of the mean gradient (SMT, GPS, SIFT, GMT, RoSA)."""
    return Score(_add, name="gradient", absolute=True, linear=True, additive=True)


def gradient_abs() -> Score:
    """E |g|: the mean size of the gradient (SMT)."""
    return Score(_add_size, name="gradient_abs", linear=True)


def saliency() -> Score:
    """|W · E g|: what the loss would change by, to first order, without the entry (SPEFT)."""
    return Score(_add_product, name="saliency", absolute=True, linear=True, additive=True)


def snip() -> Score:
    """−W · E g, with its sign: entries first that hold the loss down (SPEFT's SNIP and FORCE)."""
    return Score(_subtract_product, name="snip", linear=True, additive=True)


def taylor() -> Score:
    """E (W · g)², a square a batch (SPEFT, Molchanov et al. 2019)."""
    return Score(_add_product_squared, name="taylor", linear=True)


def fisher() -> Score:
    """E g² over single examples, of the loss that the labels give: the diagonal of the empirical
    Fisher information (FISH, Surgical FIM, SPT, TR-PTS, RoSA).
    """
    return Score(_add_square, per="example", name="fisher", linear=True)


def sensitivity(beta: float = 0.85, beta_uncertainty: float = 0.85) -> Score:
    """Sensitivity × uncertainty, two moving averages over the batches (AdaLoRA, LoSiA, SNELLA).

    I = |W·g − ½ (W·g)²|; Ī = β Ī + (1 − β) I; U = β' U + (1 − β') |I − Ī|; the score is Ī · U.
    Two accumulators an entry. Raises ValueError for a beta outside of [0, 1).
    """
    for name, value in (("beta", beta), ("beta_uncertainty", beta_uncertainty)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")

    def update(acc: torch.Tensor, weight: Matrix, gradient: Matrix) -> None:
        mean, uncertainty = acc[0], acc[1]
        change = gradient.mul_(weight)
        importance = torch.addcmul(change, change, change, value=-0.5).abs_()
        mean.lerp_(importance.to(mean.dtype), 1 - beta)
        distance = importance.sub_(mean).abs_()
        uncertainty.lerp_(distance.to(mean.dtype), 1 - beta_uncertainty)

    def finish(acc: torch.Tensor, weight: Matrix) -> Matrix:
        return acc[0].mul_(acc[1])

    return Score(update, finish, name="sensitivity", average=False, accumulators=2)


def ratio() -> Score:
    """SPIDER's ratio of ranks, r(|E g|) / r(|W|), clipped to 1 (Huang et al. 2024).

    Both sizes are ranked within their matrix, from 1 for the smallest: an entry counts in full
    where its gradient ranks at least as high as its pretrained size. Standardising first, as the
    paper does, leaves ranks alone; its released code ranks signed numbers, this one sizes.
    """

    def finish(acc: torch.Tensor, weight: Matrix) -> Matrix:
        by_gradient = _ranks(acc.abs_())
        return by_gradient.div_(_ranks(weight.abs())).clamp_(max=1)

    return Score(_add, finish, name="ratio", additive=True)


def _ranks(values: Matrix) -> Matrix:
    """1 for the smallest number, up to how many there are; equal ones in the order they lie in."""
    order = values.reshape(-1).argsort(stable=True)
    ranks = torch.empty(order.numel(), dtype=torch.float64, device=values.device)
    ranks[order] = torch.arange(1, order.numel() + 1, dtype=torch.float64, device=values.device)
    return ranks.view_as(values)
