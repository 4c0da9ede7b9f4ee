"""Small models of many architectures, with random weights and inputs, and a selection for every
parameter of theirs.
"""

import torch
import transformers
from helpers.devices import on
from torch import nn

import sparse_ft as sft

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}
SMALL_LM = {
    **SMALL,
    "vocab_size": 20,
    "max_position_embeddings": 16,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENS = {"input_ids": torch.tensor([[3, 5, 7, 3, 11, 2], [4, 4, 19, 0, 6, 1]])}
PICTURE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).sin().view(2, 3, 8, 8)
SOUND = torch.linspace(-9, 9, 2 * 8 * 16).sin().view(2, 8, 16)
SEQUENCE = torch.linspace(-9, 9, 2 * 5 * 8).sin().view(2, 5, 8)  # [batch, tokens, features]


BACKWARDS = {"decoder_input_ids": TOKENS["input_ids"].flip(1)}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def of_transformers(config: str, model: str, inputs, **settings) -> callable:
    """Makes a model of transformers by the names of its classes."""

    def make():
        made = getattr(transformers, config)(**settings)
        return getattr(transformers, model)(made), inputs

    return make


def decoder(family: str, **settings) -> callable:
    settings = {**SMALL_LM, **settings}
    return of_transformers(f"{family}Config", f"{family}ForCausalLM", TOKENS, **settings)


def mixture(family: str, **settings) -> callable:
    return decoder(family, num_experts_per_tok=2, **settings)


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class CrossAttention(nn.MultiheadAttention):
    """Keys and values of another width.

    q_proj_weight, k_proj_weight and v_proj_weight instead of in_proj_weight.
    """

    def forward(self, x):
        return super().forward(x, x[..., :6], x[..., :6])[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(8, 6, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.GroupNorm(2, 6),
        nn.GELU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, groups=2, padding=1),
        nn.Flatten(2),
        nn.Conv1d(4, 5, 2),
        nn.ConvTranspose1d(5, 2, 2),
        nn.LayerNorm(144),
    )
    return model, PICTURE


def embeddings():
    model = nn.Sequential(
        nn.Embedding(20, 8, padding_idx=3), nn.Linear(8, 20), nn.ReLU(), nn.LayerNorm(20)
    )
    return model, TOKENS["input_ids"]


ARCHITECTURES = {
    "BERT": of_transformers(
        "BertConfig", "BertForSequenceClassification", TOKENS,
        vocab_size=20, max_position_embeddings=16, **NO_DROPOUT, **SMALL,
    ),
    "GPT-2": of_transformers(
        "GPT2Config", "GPT2LMHeadModel", TOKENS,
        vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    ),
    "Llama": decoder("Llama"),
    "Mixtral": mixture("Mixtral", num_local_experts=3),
    "Qwen2-MoE": mixture(
        "Qwen2Moe", num_experts=3, moe_intermediate_size=12, shared_expert_intermediate_size=12
    ),
    "Qwen3-MoE": mixture("Qwen3Moe", num_experts=3, moe_intermediate_size=12, head_dim=8),
    "ViT": of_transformers(
        "ViTConfig", "ViTForImageClassification", {"pixel_values": PICTURE},
        image_size=8, patch_size=4, **NO_DROPOUT, **SMALL,
    ),
    "T5": of_transformers(
        "T5Config", "T5ForConditionalGeneration", {**TOKENS, **BACKWARDS},
        vocab_size=20, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_decoder_layers=1,
        num_heads=2, dropout_rate=0.0, decoder_start_token_id=0,
    ),
    "Whisper": of_transformers(
        "WhisperConfig", "WhisperForConditionalGeneration",
        {"input_features": SOUND, "decoder_input_ids": TOKENS["input_ids"]},
        vocab_size=20, num_mel_bins=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, d_model=16, encoder_ffn_dim=20,
        decoder_ffn_dim=20, max_source_positions=8, max_target_positions=16, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, decoder_start_token_id=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "convolutions": convolutions,
    "embeddings": embeddings,
    "MultiheadAttention": lambda: (SelfAttention(8, 2), SEQUENCE),
    "MultiheadAttention batch_first": lambda: (SelfAttention(8, 2, batch_first=True), SEQUENCE),
    "MultiheadAttention kdim": lambda: (
        CrossAttention(8, 2, kdim=6, vdim=6, add_bias_kv=True),
        SEQUENCE,
    ),
    "TransformerEncoderLayer": lambda: (
        nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0),
        SEQUENCE,
    ),
    "TransformerEncoderLayer batch_first": lambda: (
        nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        SEQUENCE,
    ),
    "LSTM": lambda: (Recurrent(nn.LSTM), SEQUENCE),
    "GRU": lambda: (Recurrent(nn.GRU), SEQUENCE),
}  # fmt: skip


def build(name):
    """(model in training mode, fp32, random weights; its inputs)."""
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name]()
    return model.train(), on(next(model.parameters()).device, inputs)


def double(model):
    """The model in fp64; torch's grouped product of experts does not know fp64."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.double()


def outputs(model, inputs):
    """The logits (or the output) of a model in its own dtype."""
    dtype = next(model.parameters()).dtype

    def cast(x):
        return x.to(dtype) if x.is_floating_point() else x

    out = (
        model(**{k: cast(v) for k, v in inputs.items()})
        if isinstance(inputs, dict)
        else model(cast(inputs))
    )
    return getattr(out, "logits", out)


def backward(model, inputs):
    """Gradients of the outputs' product with a fixed random tensor; returns the outputs."""
    out = outputs(model, inputs)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * probe.to(out.dtype)).sum().backward()
    return out.detach()


def full_plan(model):
    """A selection for every parameter that is not tied, the structures in turn."""
    every = list(model.named_parameters(remove_duplicate=False))
    free = [name for name, p in every if sum(q is p for _, q in every) == 1]
    return sft.Plan(
        {
            name: selection(i, sft.matrix_shape(model, name), is_embedding(model, name))
            for i, name in enumerate(free)
        }
    )


def is_embedding(model, name):
    return type(model.get_submodule(name.rpartition(".")[0])) is nn.Embedding


def selection(number, shape, rows_only):
    rows, columns = shape
    kinds = (
        ["rows"] if rows_only else ["columns", "blocks", "entries", "rows"][: 3 if rows == 1 else 4]
    )
    kind = kinds[number % len(kinds)]
    if kind == "rows":
        return sft.Rows(torch.arange(rows - 1, -1, -2).flip(0))
    if kind == "columns":
        return sft.Columns(torch.arange(columns - 1, -1, -3).flip(0))
    if kind == "entries":
        return sft.Entries(
            torch.arange(
                columns % 2 if rows * columns > 1 else 0,
                rows * columns,
                3 if rows * columns > 4 else 1,
            )
        )
    height, width = min(3, rows), min(5, columns)
    grid = torch.cartesian_prod(
        torch.arange(-(-rows // height)), torch.arange(-(-columns // width))
    )
    return sft.Blocks(
        grid[(grid.sum(1) % 2 == 0) | (torch.arange(len(grid)) == len(grid) - 1)], (height, width)
    )


def holder(model, name):
    """The module that owns the `values` of parameter `name`."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    return getattr(owner, f"{attribute}_selected", owner)


def split(model, plan):
    """(plan of the parameters whose module is replaced, plan of those that are aliased).

    model: not converted.
    """
    replaced = {
        name for name in plan if name.rpartition(".")[2] == "weight" and replaces(model, name)
    }
    return tuple(
        sft.Plan({n: s for n, s in plan.items() if (n in replaced) == which})
        for which in (True, False)
    )


def replaces(model, name):
    kind = type(model.get_submodule(name.rpartition(".")[0]))
    return kind in (nn.Linear, nn.Embedding) or kind is transformers.pytorch_utils.Conv1D
