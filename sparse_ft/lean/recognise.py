"""Which lean forward can stand in for a module's own: torch's classes by type, others by what their forward says.

A class of transformers is known by the text of its forward (without comments, docstring and the name of the argument), not by
its name: a hundred models spell the same RMSNorm, and one that changes in a later release is left alone.
"""

import ast
import functools
import hashlib
import inspect
import textwrap

import torch
from torch import nn

from ..nn import Selected, SelectiveConv1D, SelectiveLinear
from ..nn.linear import is_conv1d
from . import activations, batch_norm, conv, conv_layer, dropout, gated, linear, norms, pool
from .attach import ATTRIBUTES

TORCH = {
    nn.Linear: linear.linear_forward,
    SelectiveLinear: linear.linear_forward,
    SelectiveConv1D: linear.conv1d_forward,
    nn.RMSNorm: norms.torch_rms_norm_forward,
    nn.LayerNorm: norms.layer_norm_forward,
    nn.GELU: activations.gelu_forward,
    nn.SiLU: activations.silu_forward,
    nn.ReLU: activations.relu_forward,
    nn.Dropout: dropout.dropout_forward,
    **dict.fromkeys([nn.Conv1d, nn.Conv2d, nn.Conv3d], conv.conv_forward),
    **dict.fromkeys([nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d], conv.conv_transpose_forward),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d], batch_norm.batch_norm_forward),
    **dict.fromkeys([nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d], pool.max_pool_forward),
}

# fingerprint of a forward -> what stands in for it, and who says so
SAYS = {
    "012a37786a48": norms.llama_forward,  # RMSNorm of Llama, Mistral, Mixtral, Qwen, Phi3 and a hundred more
    "7dc8a1f47b13": norms.olmo_forward,  # Olmo2
    "1a9feb318b91": norms.gemma_forward,  # Gemma, Gemma2, Gemma3
    "a01c2d8e0558": norms.t5_forward,  # T5, MT5, UMT5, LongT5
    "2b9c40bdada3": gated.llama_mlp_forward,  # MLP of Llama, Mistral, Qwen, Gemma, Olmo and a hundred more
    "a15bc5bf1420": gated.phi3_mlp_forward,  # Phi3, GLM
    "5713f002f3f3": gated.t5_gated_forward,  # T5 v1.1, MT5, UMT5
    "b4b12e613c89": activations.tanh_gelu_forward,  # NewGELUActivation
    "fd3e39b694c2": activations.tanh_gelu_forward,  # FastGELUActivation
    "744411886707": activations.silu_forward,  # SiLUActivation
    "0a91a0c82131": activations.quick_gelu_forward,  # QuickGELUActivation
    "05b6f3abee37": conv_layer.conv_layer_forward,  # ResNet, RegNet, RT-DETR's ResNet, PP-LCNet, UVDoc, BEiT's decoder
    "c8e9eaf435a7": conv_layer.shortcut_forward,  # ResNet, RegNet, RT-DETR's ResNet
    "30d8ac152658": conv_layer.conv_norm_forward,  # RT-DETR, D-FINE, LW-DETR, OmDet-Turbo, EfficientLoFTR
    "8870749814f7": activations.by_function,  # GELUActivation, GELUTanh: whatever function they hold
}
EXPERTS_GATE = "7a340be1ef31"  # of every experts class that gives none of its own
GATED = {gated.experts_gate: "act_fn"}
GATED |= {gated.llama_mlp_forward: "act_fn", gated.phi3_mlp_forward: "activation_fn", gated.t5_gated_forward: "act"}


def lean_forward(module):
    """(forward, ""); (None, why) for a module that keeps more than it must and is not known; None where nothing can be won."""
    kind = type(module)
    if kind in TORCH:
        return _usable(module, TORCH[kind])
    if is_conv1d(kind):
        return _usable(module, linear.conv1d_forward)
    if kind.__module__.startswith("transformers."):
        if fingerprint(kind, "_apply_gate") == EXPERTS_GATE and module.is_concatenated:
            return _usable(module, gated.experts_gate)
        found = SAYS.get(fingerprint(kind))
        if found:
            return _usable(module, found)
    why = _why_unknown(module)
    return (None, why) if why else None


ACTIVATIONS = "torch.nn.modules.activation", "transformers.activations"
FRUGAL = {"Tanh", "Sigmoid", "Softmax", "Softmax2d", "LogSoftmax", "LinearActivation", "MultiheadAttention"}  # as lean as can be


def _why_unknown(module):
    """What a module that no lean forward is known for might win by one; "" where there is nothing to win."""
    kind = type(module)
    if kind.__module__ in ACTIVATIONS:
        return "" if kind.__name__ in FRUGAL else "an activation that is not known"
    if kind.__module__.startswith("torch."):
        return "a dropout that is not known" if isinstance(module, nn.modules.dropout._DropoutNd) else ""
    replaced = [base for base in TORCH if isinstance(module, base) and base is not nn.Linear]
    if replaced and not isinstance(module, Selected):
        return f"its class is not nn.{replaced[0].__name__} itself"
    children, parameters = module._modules.keys(), module._parameters.keys()
    leaf = not children
    weights = [getattr(child, "weight", None) for child in module.children()]
    products = sum(isinstance(weight, torch.Tensor) and weight.dim() == 2 for weight in weights)
    gated_mlp = (kind.__name__.endswith("MLP") and products > 2) or any("gate_" in name for name in children)
    experts = "gate_up_proj" in parameters
    convnet = {"convolution", "normalization"} <= children or {"conv", "norm"} <= children
    if (leaf and "Norm" in kind.__name__) or gated_mlp or experts or convnet:
        return "its forward is not one that is known"
    return ""


def attribute(forward):
    """Under which name an instance gets this forward."""
    return ATTRIBUTES[forward is gated.experts_gate]


def _usable(module, forward):
    if attribute(forward) in module.__dict__:
        return None, "its forward was replaced by someone else"
    if forward in GATED:
        activation = module._modules.get(GATED[forward])
        if gated.name_of(activation) is None:
            return None, f"its activation {type(activation).__name__} is not one that is known"
        if activation._forward_hooks or activation._forward_pre_hooks:
            return None, "its activation has hooks, which would not run"
    if forward is activations.by_function:
        forward = activations.by_function(module)
        if forward is None:
            return None, "its function is not one that is known"
    if forward is activations.silu_forward and getattr(module, "inplace", False):
        return None, "it works in place"
    if forward is norms.torch_rms_norm_forward and len(module.normalized_shape) != 1:
        return None, "it normalises more than the last dimension"
    return forward, ""


@functools.lru_cache(maxsize=1024)
def fingerprint(cls, *methods):
    """A short digest of what methods of `cls` say (forward, and the `_norm` it may call); None where no source is at hand."""
    try:
        texts = [_said(vars(cls)[name]) for name in methods or ("forward", "_norm") if name in vars(cls)]
    except (OSError, TypeError, SyntaxError):
        return None
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] if texts else None


def _said(function):
    """The statements of a function, its first argument after self renamed to x, without docstring and annotations.

    As a tree whose text is the same under every release of Python, which `ast.unparse` and `ast.dump` are not.
    """
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    names = [argument.arg for argument in tree.args.args if argument.arg != "self"]
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and names and node.id == names[0]:
                node.id = "x"
    return "\n".join(map(_text, body))


def _text(node):
    """A part of a syntax tree as text: what a release may add or leave out (empty fields, contexts, kinds) is not in it."""
    if isinstance(node, list):
        return f"[{' '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, []) and name not in ("ctx", "kind")]
    return f"{type(node).__name__}({' '.join(f'{name}={_text(value)}' for name, value in fields)})"
