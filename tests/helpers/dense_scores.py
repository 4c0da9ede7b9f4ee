"""Every score by a plain loop: all gradients, dense, of a copy of the model."""

import copy

import torch
from torch import nn

import sparse_ft as sft
from sparse_ft.salience.examples import example


def losses(model: nn.Module, batches: list) -> list[torch.Tensor]:
    return [model(**batch).loss if hasattr(model, "config") else model(**batch)["loss"]
            for batch in batches]  # fmt: skip


def matrices(model: nn.Module, names: list[str], tensors: list) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in zip(names, tensors):
        like = model.get_parameter(name)
        shape = sft.matrix_shape(model, name)
        found[name] = (torch.zeros_like(like) if tensor is None else tensor).detach().reshape(shape)
    return found


def gradients(model: nn.Module, names: list[str], batches: list) -> list[dict]:
    """[{name: gradient [rows, columns]}] of every batch."""
    model = copy.deepcopy(model)
    weights = [model.get_parameter(name).requires_grad_(True) for name in names]
    return [
        matrices(model, names, torch.autograd.grad(loss, weights, allow_unused=True))
        for loss in losses(model, batches)
    ]


def alone(batches: list) -> list:
    """Every example as a batch of its own."""
    return [example(batch, i) for batch in batches for i in range(3)]


def mean(found: list[dict], of=lambda g: g) -> dict[str, torch.Tensor]:
    return {name: sum(of(g[name]) for g in found) / len(found) for name in found[0]}


def weights_of(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    return matrices(model, names, [model.get_parameter(name) for name in names])


def times(model: nn.Module, found: dict) -> dict[str, torch.Tensor]:
    weights = weights_of(model, list(found))
    return {name: weights[name] * g for name, g in found.items()}


def magnitude(model, names, batches):
    return {name: w.abs() for name, w in weights_of(model, names).items()}


def magnitude_bottom(model, names, batches):
    return {name: -w.abs() for name, w in weights_of(model, names).items()}


def principal(model, names, batches):
    found = {}
    for name, weight in weights_of(model, names).items():
        left, size, right = torch.linalg.svd(weight, full_matrices=False)
        found[name] = ((left[:, :8] * size[:8]) @ right[:8]).abs()
    return found


def gradient(model, names, batches):
    return {name: g.abs() for name, g in mean(gradients(model, names, batches)).items()}


def gradient_abs(model, names, batches):
    return mean(gradients(model, names, batches), torch.abs)


def fisher(model, names, batches):
    return mean(gradients(model, names, alone(batches)), torch.square)


def saliency(model, names, batches):
    found = times(model, mean(gradients(model, names, batches)))
    return {name: product.abs() for name, product in found.items()}


def snip(model, names, batches):
    found = times(model, mean(gradients(model, names, batches)))
    return {name: -product for name, product in found.items()}


def taylor(model, names, batches):
    every = [times(model, found) for found in gradients(model, names, batches)]
    return mean(every, torch.square)


def sensitivity(model, names, batches):
    average = {name: torch.zeros_like(w) for name, w in weights_of(model, names).items()}
    doubt = {name: torch.zeros_like(w) for name, w in average.items()}
    for found in gradients(model, names, batches):
        for name, change in times(model, found).items():
            importance = (change - change.square() / 2).abs()
            average[name] = 0.85 * average[name] + 0.15 * importance
            doubt[name] = 0.85 * doubt[name] + 0.15 * (importance - average[name]).abs()
    return {name: average[name] * doubt[name] for name in names}


def ratio(model, names, batches):
    def rank(values):
        return values.flatten().argsort(stable=True).argsort().view_as(values).double() + 1

    weights = weights_of(model, names)
    found = gradient(model, names, batches)
    return {name: (rank(g) / rank(weights[name].abs())).clamp(max=1) for name, g in found.items()}


def synflow(model, names, batches):
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.abs_()
    weights = [model.get_parameter(name) for name in names]
    total = [torch.zeros_like(w) for w in weights]
    for batch in batches:
        ones = {k: torch.ones_like(v) if v.is_floating_point() else v for k, v in batch.items()}
        output = model(**ones)
        logits = output.logits if hasattr(output, "logits") else output["logits"]
        parts = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
        total = [t if p is None else t + p / len(batches) for t, p in zip(total, parts)]
    return {n: p.abs() for n, p in times(model, matrices(model, names, total)).items()}


def grasp(model, names, batches):
    model = copy.deepcopy(model)
    weights = [model.get_parameter(name) for name in names]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = sum(losses(model, batches)) / len(batches)
        first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        size = sum((g * g.detach()).sum() for g in first if g is not None)
        second = torch.autograd.grad(size, weights, allow_unused=True)
    return {n: -p for n, p in times(model, matrices(model, names, second)).items()}


def fisher_expected(model, names, batches):
    """Of classifiers: every class of every example, weighted by its probability."""
    model = copy.deepcopy(model)
    weights = [model.get_parameter(name) for name in names]
    total = [torch.zeros_like(w) for w in weights]
    for batch in alone(batches):
        output = model(**batch)
        logits = output.logits if hasattr(output, "logits") else output["logits"]
        likelihoods = logits[0].log_softmax(-1)
        for likelihood in likelihoods:
            parts = torch.autograd.grad(likelihood, weights, retain_graph=True)
            chance = likelihood.detach().exp()
            total = [t + chance * p.square() for t, p in zip(total, parts)]
    return matrices(model, names, [t / len(alone(batches)) for t in total])


def fisher_sampled(model, names, batches, seed=0):
    """Of language models: the labels that a batch draws, an example's positions averaged. Each
    batch has a seed of its own: the first one `seed`, the others what a generator of it gives.
    """
    model = copy.deepcopy(model)
    weights = [model.get_parameter(name) for name in names]
    total, seen = [torch.zeros_like(w) for w in weights], 0
    seeds = torch.Generator().manual_seed(seed)
    for batch in batches:
        likelihoods = model(**batch).logits.double().log_softmax(-1)
        draw = torch.Generator().manual_seed(seed)
        seed = int(torch.randint(2**63 - 1, (), generator=seeds))
        chances = likelihoods.detach().exp().flatten(0, 1)
        labels = torch.multinomial(chances, 1, generator=draw).view(batch["input_ids"].shape)
        own = likelihoods.gather(-1, labels[..., None]).squeeze(-1)
        kept = batch.get("attention_mask", torch.ones_like(labels))
        for likelihood in (own * kept).sum(1) / kept.sum(1):
            parts = torch.autograd.grad(likelihood, weights, retain_graph=True)
            total = [t + p.square() for t, p in zip(total, parts)]
            seen += 1
    return matrices(model, names, [t / seen for t in total])


GENERAL = {
    f.__name__: f
    for f in (
        magnitude,
        magnitude_bottom,
        principal,
        gradient,
        gradient_abs,
        fisher,
        saliency,
        snip,
        taylor,
        sensitivity,
        ratio,
        synflow,
        grasp,
    )
}
