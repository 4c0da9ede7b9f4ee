"""units: what in a model must be chosen together, found by what the model does."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .. import trees
from ..matrices import shape_of_matrix
from ..messages import check_module, described
from .attention import documented_heads
from .bare import bare
from .coupled import Coupling
from .found import Shapes, Units
from .products import Parameters
from .simple import embedding_rows, experts, layers, neurons
from .sites import with_sites
from .watching import Watch, undisturbed

RUNS = 3  # at most: a ReLU that random numbers leave off is asked again


def units(model: nn.Module, batch: Any = None, loss: Callable | None = None) -> Units:
    """What in `model` belongs together: heads, query heads, channels, experts, layers, neurons,
    embedding rows.

    Found by behaviour, in one forward or a few: between two products (linear layers,
    convolutions, transformers' Conv1D, experts in one parameter), gradients tell which rows of
    the first reach which columns of the second. Fused and interleaved projections, grouped
    queries (one unit a group of heads that share keys and values; "query_heads" are its heads
    one by one, without keys and values) and residual channels of convolutional networks come out
    of that; no name is looked at. Of torch's own `nn.MultiheadAttention`, which is one call, heads
    are where torch documents them.

    batch: what the model is run on: a mapping of its arguments, a tuple of them, or one. Two
    examples of a few tokens, without padding, are enough. None: `model.dummy_inputs`, which
    transformers' models have. The numbers do not matter: each product gives random ones.
    loss: callable (model, batch) that runs the model, where it wants more than its arguments; it
    should run the model that it is given, which is a twin of one that is converted or lean.

    Returns `Units`: `units["heads"]` lists `Unit`s; `.plan(units)` makes a plan of some;
    `.undecided` names the parameters that could not be decided, and why. The model is left as it
    was. Raises ValueError without a batch, and for a converted or lean model that cannot be looked
    at as it was before.
    """
    check_module("model", model)
    if loss is not None and not callable(loss):
        raise TypeError(f"loss: expected a function (model, batch), got {described(loss)}")
    model = bare(model)
    named = dict(model.named_parameters(remove_duplicate=True))
    parameters = Parameters(named)
    coupling = Coupling(named)
    with undisturbed(model):
        for run in range(RUNS):
            watch = Watch(parameters, seed=run)
            with torch.compiler.set_stance("force_eager"), watch:  # compiled parts, too
                output = run_on(model, batch, loss)
            if watch.cuts and not any(cut.output.numel() for cut in watch.cuts):
                raise ValueError(
                    "batch: it has no numbers; two examples of a few tokens are enough"
                )
            coupling.add(watch.cuts, _results(output))
            if coupling.is_complete:
                break
        cuts = watch.cuts
    coupled = [*coupling.groups(), *documented_heads(model, named)]
    mixtures = experts(model, named, cuts, coupling.feeds)
    found = [
        *coupled,
        *mixtures,
        *layers(model, named, {group.site for group in mixtures}),
        *neurons(named, cuts),
        *embedding_rows(named, cuts),
    ]
    return Units(with_sites(found), _shapes(model, named), coupling.undecided(coupled))


def run_on(model: nn.Module, batch: Any, loss: Callable | None = None) -> Any:
    """What the model gives for a batch, or `loss`."""
    if loss is not None and batch is not None:
        return loss(model, batch)
    if batch is None:
        batch = getattr(model, "dummy_inputs", None)
    if batch is None:
        raise ValueError(
            "batch: the model has no dummy_inputs of its own to be run on; pass"
            " batch={argument: tensor}, two examples of a few tokens"
        )
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _results(output: Any) -> list[torch.Tensor]:
    """What a model gives that counts: its loss, its logits, or all tensors."""
    if isinstance(output, Mapping):
        for name in ("loss", "logits"):
            if isinstance(output.get(name), torch.Tensor):
                return [output[name]]
        output = dict(output)
    tensors = [x for x in trees.leaves(output) if isinstance(x, torch.Tensor)]
    return [x for x in tensors if x.requires_grad]


def _shapes(model: nn.Module, named: Mapping[str, nn.Parameter]) -> dict[str, Shapes]:
    shapes = {}
    for name, parameter in named.items():
        if parameter.dim():
            path, _, attribute = name.rpartition(".")
            owner = model.get_submodule(path)
            matrix = shape_of_matrix(owner, attribute, parameter.shape)
            shapes[name] = Shapes(tuple(parameter.shape), matrix)
    return shapes
