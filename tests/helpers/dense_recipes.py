"""What recipes choose, restated: dense scores, dense masks, dense training."""

import copy

import torch
from torch import nn

import sparse_ft as sft

from . import dense_scores
from .dense_masked import DenseMasked

Matrices = dict[str, torch.Tensor]


def top(score: torch.Tensor, count: int) -> torch.Tensor:
    """bool like `score`: its `count` largest."""
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().topk(count).indices] = True
    return mask.view(score.shape)


def by_layer(scores: Matrices, density: float) -> Matrices:
    return {n: top(s, max(1, round(density * s.numel()))) for n, s in scores.items()}


def by_row(scores: Matrices, count: int) -> Matrices:
    return {n: torch.stack([top(row, count) for row in s]) for n, s in scores.items()}


def over_all(scores: Matrices, density: float) -> Matrices:
    flat = torch.cat([s.flatten() for s in scores.values()])
    mask = top(flat, round(density * flat.numel()))
    parts = mask.split([s.numel() for s in scores.values()])
    return {n: part.view(s.shape) for (n, s), part in zip(scores.items(), parts)}


def columns(scores: Matrices, count: int) -> Matrices:
    return {n: top(s.sum(0), count).expand(s.shape) for n, s in scores.items()}


def random_scores(model: nn.Module, names: list[str], seed: int = 0) -> Matrices:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: sft.matrix_shape(model, name) for name in names}
    return {n: torch.rand(shape, generator=generator) for n, shape in shapes.items()}


def masks_of(model: nn.Module, plan: sft.Plan) -> Matrices:
    """{name: bool [rows, columns], or of the parameter's shape where it trains whole}."""
    found = {}
    for name, what in plan.items():
        parameter = model.get_parameter(name)
        if what == "all":
            found[name] = torch.ones(parameter.shape, dtype=torch.bool)
        else:
            found[name] = what.mask(sft.matrix_shape(model, name))
    return found


def full_run(case, names: list[str], steps: int, lr: float) -> nn.Module:
    """A copy whose parameters `names` torch has trained, the norm of their gradients clipped."""
    model = copy.deepcopy(case.model)
    weights = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            weights.append(parameter)
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=0.0)
    for step in range(steps):
        dense_scores.losses(model, [case.batches[step % 2]])[0].backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def moved(model: nn.Module, base: nn.Module, names: list[str]) -> Matrices:
    """How far every entry of the weights `names` is from where it was."""
    before = dense_scores.weights_of(base, names)
    return {n: (w - before[n]).abs() for n, w in dense_scores.weights_of(model, names).items()}


def shares_of_experts(model: nn.Module, batches: list) -> list[torch.Tensor]:
    """Of each layer, the shares of its four experts in the choices, two a token."""
    totals = [torch.zeros(4), torch.zeros(4)]
    with torch.no_grad():
        for batch in batches:
            logits = model(**batch, output_router_logits=True).router_logits
            for total, each in zip(totals, logits):
                total += each.topk(2).indices.flatten().bincount(minlength=4)
    return [total / total.sum() for total in totals]


def fewest(shares: torch.Tensor, p: float) -> set[int]:
    """The fewest experts whose shares add up to `p`."""
    taken, total = set(), 0.0
    for number in shares.argsort(descending=True, stable=True).tolist():
        taken.add(number)
        total += float(shares[number])
        if total >= p:
            break
    return taken


def assert_equal(model: nn.Module, plan: sft.Plan, masks: Matrices) -> None:
    """The plan selects what the masks say; weights of which nothing was chosen are in neither."""
    got = masks_of(model, plan)
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    assert got.keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(got[name].flatten(), mask.flatten()), name


def trained_densely(
    model: nn.Module,
    masks: Matrices,
    batches: list,
    steps: int,
    lr: float,
    start=None,
    before=None,
    after=None,
    **settings,
) -> nn.Module:
    """A copy, trained by dense gradients and masks.

    start(dense): called first; before(dense): at each step, when gradients are there;
    after(dense, steps done).
    """
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weights = {name: model.get_parameter(name).requires_grad_() for name in masks}
    shaped = {name: mask.reshape(weights[name].shape) for name, mask in masks.items()}
    dense = DenseMasked(weights, shaped, lr, **settings)
    if start is not None:
        start(dense)
    for step in range(steps):
        dense_scores.losses(model, [batches[step % len(batches)]])[0].backward()
        for weight in weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if before is not None:
            before(dense)
        dense.step()
        if after is not None:
            after(dense, step + 1)
    return model


def trained_by_plan(
    model: nn.Module, plan: sft.Plan, batches: list, steps: int, lr: float, decay_to="zero", **more
) -> nn.Module:
    """A copy, converted by the plan, trained by SelectiveAdamW and reverted."""
    model = copy.deepcopy(model)
    sft.convert(model, plan, origin=decay_to == "origin")
    settings = {"weight_decay": 0.0, "decay_to": decay_to, **more}
    optimizer = sft.SelectiveAdamW(model.parameters(), lr, **settings)
    for step in range(steps):
        dense_scores.losses(model, [batches[step % len(batches)]])[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return sft.revert(model)


def trained_by_process(
    model: nn.Module, process: sft.recipes.Process, batches: list, steps: int, lr: float, **settings
) -> nn.Module:
    """A copy, trained as the process says and reverted."""
    model = copy.deepcopy(model)
    optimizer = process.start(model, lr, **{"weight_decay": 0.0, **settings})
    for step in range(steps):
        dense_scores.losses(model, [batches[step % len(batches)]])[0].backward()
        optimizer.step()
        process.step()
        optimizer.zero_grad()
    return sft.revert(model)


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a.detach() - b.detach()).abs().max().item() for a, b in pairs)


def assert_trains(
    case, plan: sft.Plan, masks: Matrices, decay_to: str = "zero", bound: float = 1e-9
) -> None:
    """The plan is these masks, and its first 30 steps are those of dense training.

    case: a model and its batches. bound: of the largest distance; of fp32 more than of fp64.
    """
    steps, lr, decay = 30, 1e-3, 0.1
    assert_equal(case.model, plan, masks)
    chosen = {name: mask for name, mask in masks.items() if mask.any()}
    ours = trained_by_plan(case.model, plan, case.batches, steps, lr, decay_to, weight_decay=decay)
    dense = trained_densely(
        case.model, chosen, case.batches, steps, lr, to_origin=decay_to == "origin",
        weight_decay=decay,
    )  # fmt: skip
    assert distance(ours, dense) < bound
    assert distance(ours, case.model) > lr
