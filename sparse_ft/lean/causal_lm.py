"""A causal language model whose loss is taken from its hidden states: the logits of a training step never exist whole."""

import torch
import torch.nn.functional as F
from torch import nn

from ..linear_cross_entropy import linear_cross_entropy
from ..nn import SelectiveLinear
from .attach import lean_forward_of
from .linear import linear_forward


def causal_lm_forward(
    module,
    input_ids=None,
    attention_mask=None,
    position_ids=None,
    past_key_values=None,
    inputs_embeds=None,
    labels=None,
    use_cache=None,
    logits_to_keep=0,
    **kwargs,
):
    """Llama's, Mistral's, Qwen's. With labels, in training: the same loss, no logits; otherwise the class's own forward."""
    inputs = dict(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=past_key_values,
        inputs_embeds=inputs_embeds,
        use_cache=use_cache,
        **kwargs,
    )
    trains = labels is not None and module.training and torch.is_grad_enabled()
    plain = logits_to_keep == 0 and type(logits_to_keep) is int and kwargs.get("return_dict", True) is not False
    if not (trains and plain and _is_own_loss(module) and _is_plain(module.lm_head)):
        return type(module).forward(module, labels=labels, logits_to_keep=logits_to_keep, **inputs)
    from transformers.modeling_outputs import CausalLMOutputWithPast

    outputs = module.model(**inputs)
    return CausalLMOutputWithPast(
        loss=causal_lm_loss(module.lm_head, outputs.last_hidden_state, labels, **_of_loss(kwargs)),
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def _is_own_loss(module):
    return getattr(module.loss_function, "__name__", "") == "ForCausalLMLoss"


def _is_plain(head):
    """Whether calling `head` would do no more than its class does: no adapter, no hook, no forward of someone else's."""
    hooks = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    own = "forward" not in head.__dict__ or lean_forward_of(head) is linear_forward
    return type(head) in (nn.Linear, SelectiveLinear) and own and not hooks


def _of_loss(kwargs):
    return {name: kwargs[name] for name in ("num_items_in_batch", "ignore_index", "shift_labels") if name in kwargs}


def causal_lm_loss(head, hidden, labels, num_items_in_batch=None, ignore_index=-100, shift_labels=None):
    """The mean loss (sum over num_items_in_batch if given) of predicting each next token.

    head: the nn.Linear or SelectiveLinear that gives logits. hidden: [B, T, H]. labels: [B, T]; shift_labels: shifted.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    selected = {}
    weight = head.weight
    if isinstance(head, SelectiveLinear):
        selected = {"values": head.values, "selection": head._sparse_ft_state.selection}
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(hidden.device)
    target = shift_labels.to(hidden.device)
    return linear_cross_entropy(
        hidden, weight, target, head.bias, ignore_index=ignore_index, divisor=num_items_in_batch, **selected
    )
