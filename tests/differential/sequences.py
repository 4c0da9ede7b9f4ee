"""Layers of a random network that read sequences of tokens."""

import torch
from torch import nn

RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def heads_of(width):
    return 2 if width % 2 == 0 else 1


def as_sequences(x):
    """[batch, tokens, width] of an input of any rank."""
    return x[(None,) * (3 - x.dim())] if x.dim() <= 3 else x.flatten(0, -3)


class OnSequences(nn.Module):
    """A layer that takes [batch, tokens, width], on an input of any rank."""

    def forward(self, x):
        out = self.on_sequence(as_sequences(x))
        return out.reshape(*x.shape[:-1], out.shape[-1])


def causal(tokens, x):
    """Each token sees itself and those before it."""
    return torch.full((tokens, tokens), float("-inf"), dtype=x.dtype).triu(1)


def padded(x):
    """The last token of every sequence but the first is padding, where there is more than one."""
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    if x.shape[1] > 1:
        mask[1:, -1] = True
    return mask


class SelfAttention(OnSequences):
    """mask: None, "causal" or "padded" (with batch_first)."""

    def __init__(self, width, mask=None, **options):
        super().__init__()
        self.mask, self.attention = mask, nn.MultiheadAttention(width, heads_of(width), **options)

    def on_sequence(self, x):
        masks = {}
        if self.mask == "causal":
            masks["attn_mask"] = causal(x.shape[1] if self.attention.batch_first else x.shape[0], x)
        if self.mask == "padded" and self.attention.batch_first:
            masks["key_padding_mask"] = padded(x)
        return x + self.attention(x, x, x, need_weights=False, **masks)[0]


class CrossAttention(OnSequences):
    """Keys and values of another width.

    q_proj_weight, k_proj_weight and v_proj_weight instead of in_proj_weight.
    """

    def __init__(self, width, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(
            width, heads_of(width), kdim=width - 1, vdim=width - 1, batch_first=True, **options
        )

    def on_sequence(self, x):
        return x + self.attention(x, x[..., 1:], x[..., :-1])[0]


class Encoder(OnSequences):
    def __init__(self, width, dropout=0.0, mask=None, batch_first=True, **options):
        super().__init__()
        self.mask, self.batch_first = mask, batch_first
        self.layer = nn.TransformerEncoderLayer(
            width, heads_of(width), 2 * width, dropout=dropout, batch_first=batch_first, **options
        )

    def on_sequence(self, x):
        masks = {}
        if self.mask == "causal":
            masks["src_mask"] = causal(x.shape[1] if self.batch_first else x.shape[0], x)
        if self.mask == "padded" and self.batch_first:
            masks["src_key_padding_mask"] = padded(x)
        return self.layer(x, **masks)


class Decoder(OnSequences):
    def __init__(self, width, dropout=0.0, **options):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(
            width, heads_of(width), width + 1, dropout=dropout, **options
        )

    def on_sequence(self, x):
        return self.layer(x, x.flip(1))


class Recurrent(OnSequences):
    def __init__(self, width, kind, **options):
        super().__init__()
        self.recurrent = RECURRENT[kind](width, **options)

    def on_sequence(self, x):
        return self.recurrent(x)[0]
