"""Scores: how much each entry of a weight matters. Each gives one [rows, columns] tensor a weight, one weight at a time."""

import contextlib

import torch


def random_scores(weights, generator):
    """Uniform in [0, 1), seeded: the baseline of S2FT, PaCA, SHiRA. Yields (name, score)."""
    for name, weight in weights.items():
        yield name, torch.rand(weight.shape, generator=generator, dtype=torch.float32)


def magnitude_scores(weights):
    """|W| (NeuroAda). Yields (name, score)."""
    for name, weight in weights.items():
        yield name, weight.detach().abs()


def gradient_scores(model, weights, batches, loss):
    """|E g|: the absolute mean gradient over `batches` (SMT, GPS, SIFT). Yields (name, score).

    Holds one dense gradient of the targets together. The model's parameters, gradients, modes and buffers, and the random
    state, are afterwards as they were.
    """
    gradients = _mean_gradients(model, weights, batches, loss)
    for name in list(gradients):
        yield name, gradients.pop(name).abs_()


def _mean_gradients(model, weights, batches, loss):
    seen = 0
    with _untouched(model):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in batches:
            loss(model, batch).backward()
            seen += 1
        if not seen:
            raise ValueError("batches: expected at least one batch for score='gradient', got none")
        dead = [name for name, weight in weights.items() if weight.grad is None]
        if dead:
            raise ValueError(
                f"targets: no gradient reached {', '.join(map(repr, dead[:3]))}; the loss does not depend on "
                f"{'it' if len(dead) == 1 else 'them'}; name the others in targets="
            )
        return {name: weight.grad.div_(seen) for name, weight in weights.items()}


@contextlib.contextmanager
def _untouched(model):
    """Everything that running the model may change, put back: requires_grad, grad, buffers, modes, random state."""
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    modes = [(m, m.training) for m in model.modules()]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield
    finally:
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
        for module, training in modes:
            module.training = training
