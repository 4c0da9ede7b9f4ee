"""Private training of selected entries with Opacus: `import sparse_ft.dp` teaches it the selective
modules.

    import sparse_ft.dp
    sft.convert(model, plan)
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = opacus.PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.0,
        max_grad_norm=1.0)

Each example's gradient is made for the selected entries alone, clipped and noised by Opacus, whose
accountant counts as ever: it does not depend on how many entries train. The plan must not come from
the private data (magnitude, random, or scores on public data), or the choice is not private.

Selections that are reduced from a dense gradient (convolutions, MultiheadAttention), tied
embeddings and reparametrised deltas are refused by Opacus's validator, by name. Opacus itself keeps
the whole input of each layer that trains.
"""

from collections.abc import Sequence
from typing import Any

import torch
from opacus.grad_sample import register_grad_sampler, register_norm_sampler
from opacus.validators import register_module_validator
from opacus.validators.errors import UnsupportedModuleError

from . import ops
from .annotations import AnyModule
from .functional import rows_gradient
from .nn import SelectedParameter, SelectiveConv1D, SelectiveEmbedding, SelectiveLinear, TiedLinear
from .reparametrised import HeadOffsets, HeadScales, RotatedValues, SalientMap, ScaleShift

PRODUCTS = SelectiveLinear, SelectiveConv1D
Samples = dict[torch.nn.Parameter, torch.Tensor]  # of each parameter, [examples, *its shape]


@register_grad_sampler(PRODUCTS)
def product_samples(
    layer: AnyModule, activations: Sequence[torch.Tensor], backprops: torch.Tensor
) -> Samples:
    """activations: the input [N, ..., in]. backprops: the gradient of the output [N, ..., out]."""
    features, layout = layer._sparse_ft_state.part
    input = activations[0].to(backprops.dtype)
    if features is not None:
        input = input.index_select(-1, features)
    by_example = zip(backprops, input) if layer._input_dim == 1 else zip(input, backprops)
    made = [ops.selected_wgrad(_flat(a), _flat(b), layout) for a, b in by_example]
    samples = {layer.values: _stacked(made, layer.values)}
    if layer.bias is not None and layer.bias.requires_grad:
        samples[layer.bias] = backprops.reshape(len(backprops), -1, backprops.size(-1)).sum(1)
    return _of_what_trains(samples)


@register_grad_sampler(SelectiveEmbedding)
def embedding_samples(
    layer: AnyModule, activations: Sequence[torch.Tensor], backprops: torch.Tensor
) -> Samples:
    """activations: the tokens [N, ...]. backprops: [N, ..., embedding_dim]."""
    values, index = layer.values, layer._sparse_ft_state.selection.index
    made = [
        rows_gradient(tokens, _flat(grad).to(values.dtype), index, layer.padding_idx, values.shape)
        for tokens, grad in zip(activations[0], backprops)
    ]
    return _of_what_trains({values: _stacked(made, values)})


@register_norm_sampler((*PRODUCTS, SelectiveEmbedding))
def norms(
    layer: AnyModule, activations: Sequence[torch.Tensor], backprops: torch.Tensor
) -> Samples:
    """For Opacus's ghost clipping: the norm of each example's gradient, [N]."""
    is_embedding = isinstance(layer, SelectiveEmbedding)
    sampler = embedding_samples if is_embedding else product_samples
    samples = sampler(layer, activations, backprops)
    return {parameter: each.flatten(1).norm(dim=1) for parameter, each in samples.items()}


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[T, features], of one example."""
    return tensor.reshape(-1, tensor.size(-1))


def _stacked(made: list[torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """[N, *values.shape]; a batch that was drawn at random may be empty."""
    return torch.stack(made) if made else values.new_zeros(0, *values.shape)


def _of_what_trains(samples: Samples) -> Samples:
    return {parameter: each for parameter, each in samples.items() if parameter.requires_grad}


UNSUPPORTED = SelectedParameter, HeadOffsets, HeadScales, RotatedValues, SalientMap, ScaleShift


@register_module_validator(UNSUPPORTED)
def why_not(module: AnyModule, **_: Any) -> list[UnsupportedModuleError]:
    """What has no gradient of its own for each example."""
    label = getattr(module, "label", "")
    return [
        UnsupportedModuleError(
            f"{label}: its gradient is not known example by example"
            f" ({type(module).__name__}); leave it out of the plan"
        )
    ]


@register_module_validator((SelectiveEmbedding, TiedLinear))
def why_not_tied(module: AnyModule, **_: Any) -> list[UnsupportedModuleError]:
    """A tied embedding's gradient comes from its heads, too."""
    if isinstance(module, SelectiveEmbedding) and not module._sparse_ft_state.tied:
        return []
    return [
        UnsupportedModuleError(
            "a tied embedding gets a part of its gradient in its output head, which is not known"
            " example by example; leave it out of the plan, or untie it"
        )
    ]
