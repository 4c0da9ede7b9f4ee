"""Bi-Drop (Tong et al., 2023): entries on whose gradient two passes with dropout agree take a step.

Two backwards an update, and both whole gradients: more than full fine-tuning costs.
python examples/methods/bi_drop.py
"""

import small
import torch

KEPT = 0.5  # share of each tensor's entries


def agreed(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The mean gradient where it is large beside the difference of the two, else 0."""
    mean = (first + second) / 2
    sureness = mean.abs() / ((first - second).abs() + 1e-12)
    least = sureness.flatten().kthvalue(1 + int((1 - KEPT) * (mean.numel() - 1))).values
    return torch.where(sureness >= least, mean, 0.0)


model = small.model()
parameters = list(model.parameters())
optimizer = torch.optim.AdamW(parameters, lr=1e-2)
for batch in small.batches(120):
    losses = [small.loss(model, batch) for _ in range(2)]  # two masks of dropout
    gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
    for parameter, first, second in zip(parameters, *gradients):
        parameter.grad = agreed(first, second)
    optimizer.step()
    print(f"loss {losses[0].item():.4f}")
print(f"accuracy {small.accuracy(model, small.batches(8, seed=1)):.3f}")
