"""Which lean forward can stand in for a module's own: torch's classes by type, others by what their forward says.

A class of transformers is known by the text of its forward (without comments, docstring and the name of the argument), not by
its name: a hundred models spell the same RMSNorm, and one that changes in a later release is left alone.
"""

import ast
import functools
import hashlib
import inspect
import textwrap

from torch import nn

from . import activations, batch_norm, conv, conv_layer, dropout, gated, linear, norms, pool
from .attach import ATTRIBUTES

TORCH = {
    nn.Linear: linear.linear_forward,
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
    "7ae286966607": norms.llama_forward,  # RMSNorm of Llama, Mistral, Mixtral, Qwen, Phi3 and a hundred more
    "3c95aa8cccf4": norms.olmo_forward,  # Olmo2
    "cf29215453a9": norms.gemma_forward,  # Gemma, Gemma2, Gemma3
    "c594886c5acc": norms.t5_forward,  # T5, MT5, UMT5, LongT5
    "5b8abf7af12a": gated.llama_mlp_forward,  # MLP of Llama, Mistral, Qwen, Gemma, Olmo and a hundred more
    "e9de760a32ae": gated.phi3_mlp_forward,  # Phi3, GLM
    "067167e5fe51": gated.t5_gated_forward,  # T5 v1.1, MT5, UMT5
    "47d3b330865f": activations.tanh_gelu_forward,  # NewGELUActivation
    "2ca0786daebb": activations.tanh_gelu_forward,  # FastGELUActivation
    "3fad730aeb7c": activations.silu_forward,  # SiLUActivation
    "a576c08f5308": activations.quick_gelu_forward,  # QuickGELUActivation
    "90dff9e5529b": conv_layer.conv_layer_forward,  # ResNet, RegNet, RT-DETR's ResNet, PP-LCNet, UVDoc, BEiT's decoder
    "9138ffa16e47": conv_layer.shortcut_forward,  # ResNet, RegNet, RT-DETR's ResNet
    "161644707c56": conv_layer.conv_norm_forward,  # RT-DETR, D-FINE, LW-DETR, OmDet-Turbo, EfficientLoFTR
    "525f44d3b463": activations.by_function,  # GELUActivation, GELUTanh: whatever function they hold
}
EXPERTS_GATE = "24d6b70b11b1"  # of every experts class that gives none of its own
GATED = {gated.experts_gate: "act_fn"}
GATED |= {gated.llama_mlp_forward: "act_fn", gated.phi3_mlp_forward: "activation_fn", gated.t5_gated_forward: "act"}


def lean_forward(module):
    """(forward, ""); (None, why) for a module that keeps more than it must and is not known; None where nothing can be won."""
    kind = type(module)
    if kind in TORCH:
        return _usable(module, TORCH[kind])
    if not kind.__module__.startswith("transformers."):
        return None
    if fingerprint(kind, "_apply_gate") == EXPERTS_GATE and module.is_concatenated:
        return _usable(module, gated.experts_gate)
    found = SAYS.get(fingerprint(kind))
    if found:
        return _usable(module, found)
    if "Norm" in kind.__name__ or kind.__name__.endswith("MLP"):
        return None, "its forward is not one that is known"
    return None


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
    """The statements of a function, its first argument after self renamed to x, without docstring and annotations."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    names = [argument.arg for argument in tree.args.args if argument.arg != "self"]
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and names and node.id == names[0]:
                node.id = "x"
    return "\n".join(map(ast.unparse, body))
