"""The examples of a batch, one by one, and how much each counts in the loss of all."""

from collections.abc import Mapping
from typing import Any

import torch

from ..messages import described
from ..trees import leaves, map_leaves

IGNORED = -100  # the label that torch's losses leave out


def number_of_examples(batch: Any) -> int:
    """The size of the first dimension that the batch's tensors share.

    Raises ValueError for a batch without one.
    """
    sizes = {t.size(0) for t in _tensors(batch) if t.dim()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "batches: a score per example needs batches of tensors whose first dimension is that of"
            f" the examples, got {described(batch)}"
        )
    return sizes.pop()


def example(batch: Any, number: int) -> Any:
    """The batch of this example alone."""

    def part(leaf: Any) -> Any:
        has_examples = isinstance(leaf, torch.Tensor) and leaf.dim()
        return leaf[number : number + 1] if has_examples else leaf

    if isinstance(batch, Mapping) and not isinstance(batch, dict):  # transformers' BatchEncoding
        batch = dict(batch)
    return map_leaves(part, batch)


def weights_of(batch: Any) -> list[torch.Tensor]:
    """[examples] each: what an example's own loss may count with in the mean over the batch.

    Either all alike, or by the labels that are not ignored: of all positions, or of all but the
    first, as causal language models shift them.
    """
    number = number_of_examples(batch)
    found = [torch.full((number,), 1 / number, dtype=torch.float64, device="cpu")]
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, torch.Tensor) or labels.dim() < 2 or labels.is_floating_point():
        return found
    for counted in (labels.flatten(1), labels[:, 1:].flatten(1)):
        count = (counted != IGNORED).sum(1).double().cpu()
        if count.sum() > 0:
            found.append(count / count.sum())
    return found


def _tensors(batch: Any) -> list[torch.Tensor]:
    tree = dict(batch) if isinstance(batch, Mapping) else batch
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]
