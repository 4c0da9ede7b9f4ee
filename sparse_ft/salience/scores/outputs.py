"""Scores whose objective is made of what the model gives, not of a loss by labels."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...messages import described
from ...trees import map_leaves
from ..score import Score
from .gradients import _add_product, _add_square

CLASSES = 64  # up to so many the expectation over them is taken whole


def synflow() -> Score:
    """|W · ∂R/∂W|, R being the sum of what the model gives with |W| in the place of W, and ones for
    floating-point inputs (SynFlow, SPEFT). No label is looked at; token ids stay as they are.
    """
    return Score(
        _add_product,
        name="synflow",
        absolute=True,
        linear=True,
        additive=True,
        objectives=_flow,
        of_magnitudes=True,
    )


def fisher_expected() -> Score:
    """E g² over single examples and over the labels that the model itself expects: the diagonal of
    the true Fisher information (FISH).

    Of a classifier with at most 64 classes, logits [examples, classes], the expectation over the
    classes is whole, one backward a class. Else a label is drawn for every position, by a seed that
    `seed` draws for every batch, and the log-likelihoods of an example's positions are averaged,
    without those that `attention_mask` leaves out.
    """
    return Score(
        _add_square, per="example", name="fisher_expected", linear=True, objectives=_expected
    )


def outputs_of(model: nn.Module, batch: Any) -> Any:
    """What the model gives for a batch: a mapping is its arguments, a tuple or list begins with
    its input.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    return model(batch)


def logits_of(output: Any) -> torch.Tensor:
    """The scores that a model's output holds: its `logits`, its last hidden state, or itself."""
    for name in ("logits", "last_hidden_state"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found
    if isinstance(output, torch.Tensor):
        return output
    raise TypeError(f"model: expected logits in its output, got {described(output)}")


def _flow(model: nn.Module, batch: Any, seed: int) -> Iterator[torch.Tensor]:
    def ones(leaf: Any) -> Any:
        is_float = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return torch.ones_like(leaf) if is_float else leaf

    batch = map_leaves(ones, dict(batch) if isinstance(batch, Mapping) else batch)
    yield logits_of(outputs_of(model, batch)).sum()


def _expected(model: nn.Module, batch: Any, seed: int) -> Iterator[torch.Tensor]:
    """[examples] each: what an example adds to the square, as losses."""
    logits = logits_of(outputs_of(model, batch))
    wide = torch.promote_types(logits.dtype, torch.float32)
    likelihoods = logits.log_softmax(-1, dtype=wide)
    if logits.dim() == 2 and logits.size(1) <= CLASSES:
        # the square of a gradient that is multiplied by √p is p times the square
        amounts = likelihoods.detach().exp().sqrt()
        for number in range(logits.size(1)):
            yield -likelihoods[:, number] * amounts[:, number]
        return
    generator = torch.Generator().manual_seed(seed)
    flat = likelihoods.detach().exp().reshape(-1, logits.size(-1)).cpu()
    labels = torch.multinomial(flat, 1, generator=generator).view(logits.shape[:-1])
    own = likelihoods.gather(-1, labels.to(logits.device)[..., None]).squeeze(-1)
    yield -_mean_of_positions(own, batch)


def _mean_of_positions(values: torch.Tensor, batch: Any) -> torch.Tensor:
    """[examples]: the mean over the positions of each that the attention mask keeps."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, torch.Tensor) or mask.shape != values.shape:
        return values.flatten(1).mean(1) if values.dim() > 1 else values
    kept = mask.to(values)
    return (values * kept).sum(1) / kept.sum(1).clamp(min=1)
