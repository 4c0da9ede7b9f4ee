"""Small quantised networks, by the name of their format."""

import copy
import functools

import pytest
import torch
from torch import nn

import sparse_ft as sft

HIDDEN = 64
FORMATS = ("nf4", "int8", "torchao int8", "torchao int4", "torchao float8")


def network(seed=0, bias=True):
    """Three linear layers in full precision."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(HIDDEN, 2 * HIDDEN, bias=bias),
        nn.GELU(),
        nn.Linear(2 * HIDDEN, HIDDEN, bias=bias),
        nn.GELU(),
        nn.Linear(HIDDEN, HIDDEN, bias=bias),
    )


def quantise(model, form, **settings):
    """Every `nn.Linear` below `model` in this format, in place. Skips where its library is not
    installed. Returns the model.
    """
    if form.startswith("torchao"):
        quantization = pytest.importorskip("torchao.quantization")
        configs = {
            "torchao int8": quantization.Int8WeightOnlyConfig,
            "torchao int4": functools.partial(
                quantization.IntxWeightOnlyConfig, weight_dtype=torch.int4
            ),
            "torchao float8": quantization.Float8WeightOnlyConfig,
        }
        quantization.quantize_(model, configs[form](**settings))
        return model
    layers = pytest.importorskip("bitsandbytes").nn
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(
                parent, name.rpartition(".")[2], _by_bitsandbytes(layers, module, form, settings)
            )
    return model.to("cpu")  # which quantises it


def _by_bitsandbytes(layers, module, form, settings):
    shape = module.in_features, module.out_features
    bias = module.bias is not None
    if form == "int8":
        made = layers.Linear8bitLt(*shape, bias=bias, has_fp16_weights=False, **settings)
    else:
        dtype = module.weight.dtype
        made = layers.Linear4bit(
            *shape, bias=bias, quant_type=form, compute_dtype=dtype, **settings
        )
    for name, parameter in module.named_parameters():
        getattr(made, name).data = parameter.detach().clone()
    return made


def dense_twin(model):
    """The same network with its dequantised weights in full precision, on memory of its own."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        quantiser = sft.quantised.quantiser_of(module)
        if quantiser is not None:
            parent = twin.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _dequantised(quantiser, module))
    return twin


def _dequantised(quantiser, module):
    dense = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    with torch.no_grad():
        dense.weight.copy_(quantiser.dequantise(module, torch.float32))
        if module.bias is not None:
            dense.bias.copy_(module.bias)
    return dense


def selections(rows, columns):
    """{kind: a selection of a matrix (rows, columns)}."""
    picked = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(1))[:40]
    return {
        "rows": sft.Rows([0, 3, rows - 1]),
        "columns": sft.Columns([1, 2, columns - 5]),
        "blocks": sft.Blocks([[0, 1], [1, 0]], 16),
        "entries": sft.Entries(picked.sort().values),
    }


def plan_of(model, kind):
    """One selection of this kind in every linear layer, quantised or not."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shape = module.out_features, module.in_features
            found[f"{name}.weight"] = selections(*shape)[kind]
    return found
