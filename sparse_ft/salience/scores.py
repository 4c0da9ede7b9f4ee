"""Scores: how much each entry of a weight matters. Each gives one [rows, columns] tensor a weight,
one weight at a time.
"""

import torch

from .untouched import untouched


def random_scores(weights, generator):
    """Uniform in [0, 1), seeded: the baseline of S2FT, PaCA, SHiRA. Yields (name, score)."""
    for name, weight in weights.items():
        yield name, torch.rand(weight.shape, generator=generator, dtype=torch.float32)


def magnitude_scores(weights):
    """|W| (NeuroAda). Yields (name, score)."""
    for name, weight in weights.items():
        yield name, weight.detach().abs()


def gradient_scores(model, weights, batches, loss, ranks):
    """|E g|: the absolute mean gradient over `batches` (SMT, GPS, SIFT). Yields (name, score).

    ranks: the processes whose batches count (`sparse_ft.ranks`); all have the same scores then.
    Holds one dense gradient of the targets together. The model and the random states are afterwards
    as they were (see `untouched`), and no hook of a parameter runs.
    """
    gradients = _mean_gradients(model, weights, batches, loss, ranks)
    for name in list(gradients):
        yield name, gradients.pop(name).abs_()


def _mean_gradients(model, weights, batches, loss, ranks):
    _check_can_differentiate(weights)

    def run(saved):
        seen, collecting = 0, saved.stand_ins(weights)
        for batch in batches:
            loss(model, batch).backward()
            seen += 1
        return seen, {name: weight.grad for name, weight in collecting.items()}

    seen, gradients = untouched(model, run)
    gradients = {
        name: None if g is None else g.to_dense() if g.is_sparse else g
        for name, g in gradients.items()
    }
    seen, gradients = _over_ranks(ranks, weights, seen, gradients)
    if not seen:
        raise ValueError("batches: expected at least one batch for score='gradient', got none")
    dead = [name for name, gradient in gradients.items() if gradient is None]
    if dead:
        raise ValueError(
            f"targets: no gradient reached {', '.join(map(repr, dead[:3]))}; the loss does not"
            f" depend on {'it' if len(dead) == 1 else 'them'}; name the others in targets="
        )
    return {name: gradient.div_(seen) for name, gradient in gradients.items()}


def _over_ranks(ranks, weights, seen, gradients):
    """The number of batches and the sums of gradients over all ranks; None where none reached a
    weight on any of them.
    """
    if ranks.size == 1:
        return seen, gradients
    ranks.agree(
        {name: f"{tuple(weight.shape)} of {weight.dtype} #" for name, weight in weights.items()}
    )
    told = ranks.exchange(
        (seen, [name for name, gradient in gradients.items() if gradient is not None])
    )
    reached = {name for _, names in told for name in names}
    sums = dict.fromkeys(weights)
    for name in weights:
        if name in reached:
            mine = gradients.pop(name)
            sums[name] = ranks.sum_(
                torch.zeros_like(weights[name]) if mine is None else mine.contiguous()
            )
    return sum(count for count, _ in told), sums


def _check_can_differentiate(weights):
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "score: 'gradient' needs gradients, and torch.inference_mode() has none; call select"
            " outside of it (torch.no_grad() does no harm)"
        )
    for name, weight in weights.items():
        if weight.is_inference():
            raise ValueError(
                f"targets: {name!r} was made under torch.inference_mode() and takes no gradient;"
                " make or load the model outside of it"
            )
        if not weight.is_floating_point():
            raise TypeError(
                f"targets: {name!r} is {weight.dtype}, and only floating-point weights have"
                " gradients"
            )
