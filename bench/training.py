"""Whole layers and models with a way of training each.

What bench_layer and bench_breakdown put side by side.
"""

import warnings

import torch
from torch import nn

import sparse_ft as sft
from bench.suite import Unavailable

METHODS = ("ours", "full", "frozen", "LoRA r=8", "SHiRA r=8")
RANK = 8  # of the adapters
DENSITY = 0.01


def llama(hidden_size, intermediate_size, num_attention_heads, num_key_value_heads):
    """The shape of one decoder layer, as LlamaConfig's keywords."""
    return dict(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=hidden_size // num_attention_heads,
    )


TINY_LLAMA = llama(32, 64, 4, 2)
LLAMA_1B = llama(2048, 8192, 32, 8)
LLAMA_3B = llama(3072, 8192, 24, 8)
LLAMA_8B = llama(4096, 14336, 32, 8)
MINILM = dict(hidden_size=384, intermediate_size=1536, num_attention_heads=12, num_hidden_layers=6)
TINY_MINILM = dict(hidden_size=24, intermediate_size=48, num_attention_heads=2, num_hidden_layers=6)
SMOLLM2 = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    num_hidden_layers=30,
)
TINY_SMOLLM2 = dict(
    hidden_size=24,
    intermediate_size=48,
    num_attention_heads=3,
    num_key_value_heads=1,
    num_hidden_layers=2,
)
LINEARS = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "query",
    "key",
    "value",
    "dense",
]


class LlamaLayer(nn.Module):
    """One decoder layer and the rotary tables it reads.

    hidden: [batch, tokens, hidden] in and out.
    """

    def __init__(self, **shape):
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

        super().__init__()
        config = LlamaConfig(
            **shape, num_hidden_layers=1, vocab_size=64, attn_implementation="sdpa"
        )
        self.layer, self.rotary, self.hidden_size = (
            LlamaDecoderLayer(config, 0),
            LlamaRotaryEmbedding(config),
            config.hidden_size,
        )

    def forward(self, hidden):
        place = self.rotary(hidden, torch.arange(hidden.size(1))[None])
        out = self.layer(hidden, position_embeddings=place)
        return out[0] if isinstance(out, tuple) else out


class MiniLM(nn.Module):
    """The encoder of the demo's model, from hidden states on.

    [batch, tokens, hidden] in and out.
    """

    def __init__(self, **shape):
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertEncoder

        super().__init__()
        config = BertConfig(
            **shape, vocab_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        config._attn_implementation = "sdpa"
        self.encoder, self.hidden_size = BertEncoder(config), config.hidden_size

    def forward(self, hidden):
        return self.encoder(hidden).last_hidden_state


class Decoder(nn.Module):
    """The layers of a Llama-like model and its last norm, from hidden states on.

    [batch, tokens, hidden] in and out.
    """

    def __init__(self, **shape):
        from transformers import LlamaConfig, LlamaModel

        super().__init__()
        self.model = LlamaModel(LlamaConfig(**shape, vocab_size=64, attn_implementation="sdpa"))

    def forward(self, hidden):
        return self.model(inputs_embeds=hidden, use_cache=False).last_hidden_state


def base(cls, shape, dtype):
    """A frozen model of random weights."""
    torch.manual_seed(0)
    return cls(**shape).to(dtype).requires_grad_(False)


def prepare(model, method, structure="columns", fused=False):
    """(model, optimiser or None) for a frozen base. fused: ours under torch's fused AdamW instead
    of SelectiveAdamW.
    """
    if method == "frozen":
        return model, None
    if method == "ours":
        targets = [f"*{name}.weight" for name in _linears(model)]
        plan = sft.select(
            model, density=DENSITY, structure=structure, score="random", targets=targets
        )
        sft.convert(model, plan)
        if fused:
            return model, torch.optim.AdamW(trained(model), fused=True)
        return model, sft.SelectiveAdamW(model.parameters())
    if method == "full":
        model.requires_grad_(True)
    else:
        model = adapters(model, method.partition(" ")[0], RANK, 2 * RANK, _linears(model))
    return model, torch.optim.AdamW(trained(model), fused=True)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def _linears(model):
    """The last part of the name of each linear layer."""
    return sorted(
        {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        & set(LINEARS)
    )


def adapters(model, kind, rank, alpha, targets):
    """`model` with adapters of PEFT, "LoRA" or "SHiRA"; raises Unavailable without it.

    They are in the weight's dtype, which is the faster choice.
    """
    try:
        import peft
    except ImportError as why:
        raise Unavailable(f"peft: {why}") from None
    if kind == "LoRA":
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)
    else:
        config = peft.ShiraConfig(r=rank, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


class Step:
    """One training step in parts. The input needs a gradient, as inside of a network."""

    def __init__(self, model, optimizer, batch, tokens, hidden, dtype):
        self.model, self.optimizer = model, optimizer
        self.hidden = torch.randn(batch, tokens, hidden).to(dtype).requires_grad_()
        self.grad_output = torch.randn(batch, tokens, hidden).to(dtype)

    def forward(self):
        self.output = self.model(self.hidden)

    def backward(self):
        self.output.backward(self.grad_output)
        self.output = self.hidden.grad = None

    def optimize(self):
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def __call__(self):
        self.forward()
        self.backward()
        self.optimize()


def selected_products(model, tokens, dtype, density=DENSITY):
    """A call that makes the column-selected weight gradients of every linear layer by gather +
    GEMM, and nothing else.
    """
    calls = []
    for linear in (m for m in model.modules() if isinstance(m, nn.Linear)):
        rows, columns = linear.weight.shape
        index = torch.randperm(columns)[: max(1, round(density * columns))].sort().values
        calls.append(
            (torch.randn(tokens, rows).to(dtype), torch.randn(tokens, columns).to(dtype), index)
        )

    def call():
        for grad_output, input, index in calls:
            grad_output.T @ input.index_select(1, index)

    return call
