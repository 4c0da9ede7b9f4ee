"""Where the entries of a delta are: tensors of a model by name, their matrix, what reads them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import ops
from ..carried import selected_modules
from ..converted import converted_part, record_of
from ..messages import did_you_mean
from ..nn import Selected, SelectedParameter, SelectiveConv1D, stored
from ..nn.apart import as_matrix
from ..nn.left import Left
from ..nn.linear import is_conv1d
from ..nn.sharded import WHOLE, refuse_sharded
from ..ops.layout import inside
from ..places import matrix_shape
from ..plan import ALL
from ..quantised.quantiser import quantiser_of
from ..reparametrised import parts_of
from ..selection import Selection

LINEAR, CONV1D, EMBEDDING = "linear", "conv1d", "embedding"
BUFFER, TIED, OTHER = "buffer", "tied", "other"


class Trained(NamedTuple):
    """One tensor of a converted model that trains, showing its values.

    selection: None where it trains whole. reader: what its module is, as in `reader_of`. parameter:
    what an optimiser holds: the values of a selective module, or the tensor itself. left: entries
    that trained before a reselection, and have kept what they learnt. layer: the module, where its
    weight is quantised; `weight` is a dequantised copy then.
    """

    name: str
    weight: torch.Tensor
    selection: Selection | None
    matrix_shape: tuple[int, int]
    reader: str
    parameter: torch.Tensor
    left: Left | None
    layer: Any = None


def trained(model: nn.Module) -> Iterator[Trained]:
    """What trains in a converted model, in the order of its modules; each weight is synchronised.

    Raises ValueError for a model that is not converted.
    """
    record = record_of(model)
    if record is None:
        way_out = converted_part(model) or (
            "; sft.convert it first, or compare two models: sft.diff(base, trained)"
        )
        if hasattr(model, "peft_config"):
            way_out = (
                ", for it is PEFT's; model.save_pretrained keeps its adapter, and"
                " sft.diff(base, model.merge_and_unload()) makes a delta of it"
            )
        raise ValueError(f"model: it is not converted, so nothing tells what was trained{way_out}")
    refuse_sharded(model, WHOLE)
    for part, _ in parts_of(model):
        raise ValueError(
            f"model: {part.label!r} has a reparametrised delta ({part.kind}), which is no change of"
            " single entries; sft.revert(model) merges it, its state_dict holds it"
        )
    seen = set()
    for prefix, module in selected_modules(model):
        if id(module) in seen:
            continue
        seen.add(id(module))
        module.sync()
        state = module._sparse_ft_state
        name, _ = module._keys(prefix)
        layer = None if module.has_cache else module
        weight = module._weight().detach() if layer is None else module._matrix()
        reader = TIED if state.tied else _reader_of_selected(module)
        values = module._parameters["values"]
        selection, shape = state.selection, state.matrix_shape
        yield Trained(name, weight, selection, shape, reader, values, state.left, layer)
    tied = tied_in(model)
    for name, what in record.plan.items():
        if what == ALL:
            owner, attribute = owner_of(model, name)
            parameter: Any = tensor_of(owner, attribute)
            weight = parameter.detach()
            reader = TIED if name in tied else reader_of(owner, attribute)
            yield Trained(name, weight, None, _shape(weight), reader, parameter, None)


def tied_in(model: nn.Module) -> set[str]:
    """The names of parameters that have more than one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for several in names.values() if len(several) > 1 for name in several}


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module and the attribute behind a name in `model.state_dict()`. Raises KeyError."""
    path, _, attribute = name.rpartition(".")
    owner: Any = model
    try:
        for step in path.split(".") if path else ():
            owner = owner._modules[step]  # a switch of deltas asks hundreds of times
        tensor_of(owner, attribute)
    except (AttributeError, KeyError):
        names = [known for known, _ in model.named_parameters()]
        known = did_you_mean(name, names)
        raise KeyError(f"delta: the model has no tensor {name!r}{known}") from None
    return owner, attribute


def tensor_of(owner: nn.Module, attribute: str) -> torch.Tensor:
    """The parameter or buffer `attribute` of `owner` itself. Raises KeyError."""
    if owner._parameters.get(attribute) is not None:
        return stored(owner, attribute)
    tensor = owner._buffers[attribute]
    if tensor is None:
        raise KeyError(attribute)
    return tensor


def reader_of(owner: nn.Module, attribute: str) -> str:
    """What reads a tensor: "linear", "conv1d", "embedding", "other"; "buffer" is no parameter.

    A linear layer's is stored [out, in], that of transformers' Conv1D [in, out].
    """
    if owner._parameters.get(attribute) is None:
        return BUFFER
    if attribute != "weight":
        return OTHER
    if isinstance(owner, nn.Linear):
        return LINEAR
    if isinstance(owner, SelectiveConv1D) or is_conv1d(type(owner)):
        return CONV1D
    return EMBEDDING if isinstance(owner, nn.Embedding) else OTHER


def _reader_of_selected(module: Selected) -> str:
    if isinstance(module, SelectedParameter):
        return reader_of(module.owner, module.name)
    return reader_of(module, "weight")


def matrix_of(model: nn.Module, name: str) -> torch.Tensor:
    """The tensor `name` of a plain model as its matrix, sharing its memory.

    Raises KeyError or ValueError that name it.
    """
    owner, attribute = owner_of(model, name)
    return as_matrix(tensor_of(owner, attribute).detach(), matrix_shape(model, name), name)


def layer_of(model: nn.Module, name: str) -> Any:
    """The quantised linear layer whose weight is called `name`; None where it is not quantised."""
    owner, attribute = owner_of(model, name)
    is_quantised = attribute == "weight" and quantiser_of(owner) is not None
    return owner if is_quantised else None


def _shape(tensor: torch.Tensor) -> tuple[int, int]:
    """The matrix of a tensor of which every entry is meant: one row."""
    return 1, tensor.numel()


def positions_of(selection: Selection, shape: tuple[int, int]) -> torch.Tensor:
    """Flat positions [n] int64 of the values of `selection` on a matrix of `shape`.

    In the order of the values; -1 for padding of blocks.
    """
    if selection.kind == "entries":
        return selection.index.long()
    row, column = torch.broadcast_tensors(*selection.layout.places(shape))
    flat = row * shape[1] + column
    return flat.masked_fill(~inside(row, column, shape), -1).reshape(-1)


def gathered(matrix: torch.Tensor, selection: Selection) -> torch.Tensor:
    """The selected entries of `matrix`, in its dtype and on its device."""
    return ops.gather_selected(matrix, selection.to(matrix.device).layout)
