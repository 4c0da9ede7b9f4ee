"""An attention function for transformers: a padded batch keeps its key and value heads unrepeated, and one mask a model."""

import torch
import torch.nn.functional as F
from torch.utils.weak import TensorWeakRef

NAME = "sparse_ft_sdpa"

_mask = None  # (the model's mask, weakly, its version and the dtype asked; the additive mask made of it, weakly)


def use_lean_attention(model):
    """Switch a transformers model from "sdpa" to `attention`; the name it had, or None where nothing was switched."""
    config = getattr(model, "config", None)
    name = getattr(config, "_attn_implementation", None)
    if name != "sdpa" or not hasattr(model, "set_attn_implementation"):
        return None
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return name


def attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, **kwargs):
    """transformers' "sdpa", but for what it keeps with a mask on the CPU.

    query: [B, heads, T, D]; key, value: [B, kv heads, S, D]; attention_mask: None or [B, 1, T, S]. Kept for backward: these,
    the output, and 4 bytes a head and token.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    unusual = any(value is not None for name, value in kwargs.items() if name == "position_bias")
    if attention_mask is None or unusual or query.device.type != "cpu":
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        additive(attention_mask, query.dtype),
        dropout,
        scale=scaling,
        enable_gqa=key.size(1) != query.size(1),
    )
    return output.transpose(1, 2).contiguous(), None


def additive(mask, dtype):
    """A boolean mask as zeros and -inf in `dtype`: one tensor for all layers that are given the same mask."""
    global _mask
    if mask.dtype != torch.bool or torch.compiler.is_compiling():
        return mask
    if _mask is not None:
        known, state, made = _mask
        found = made() if known() is mask and state == (mask._version, dtype) else None
        if found is not None:
            return found
    made = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
    _mask = TensorWeakRef(mask), (mask._version, dtype), TensorWeakRef(made)
    return made
