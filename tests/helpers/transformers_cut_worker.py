"""Two processes that train models which transformers' own tensor parallel has cut.

`python transformers_cut_worker.py 2 FOLDER`; each leaves FOLDER/RANK.pt: {name: what it found}. The
models lie in FOLDER/Llama and FOLDER/Qwen3.
"""

import sys
from typing import Any

import torch
import transformers
from helpers import ranks
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

import sparse_ft as sft

STEPS = 3
SHAPE: dict[str, Any] = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    vocab_size=32,
    max_position_embeddings=16,
    use_cache=False,
)
LLAMA: dict[str, Any] = {
    "model.embed_tokens.weight": sft.Rows([0, 3, 31]),
    "model.layers.0.self_attn.q_proj.weight": sft.Columns([1, 15]),
    "model.layers.0.self_attn.o_proj.weight": sft.Entries([0, 100, 255]),
    "model.layers.0.mlp.up_proj.weight": sft.Rows([0, 1, 23]),
    "model.layers.0.mlp.down_proj.weight": sft.Blocks([[0, 0], [1, 1]], (8, 8)),
    "model.layers.0.input_layernorm.weight": sft.Entries([0, 7]),
    "model.layers.0.mlp.gate_proj.weight": "all",
}
HEADS_NORM = "model.layers.0.self_attn.q_norm.weight"
PACKED = "model.layers.0.mlp.experts.gate_up_proj"
EXPERTS = "model.layers.0.mlp.experts.down_proj"


def made(kind: str) -> nn.Module:
    """A model of this kind, of the same numbers each time."""
    torch.manual_seed(0)
    if kind == "Llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    if kind == "tied Llama":
        config = transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)
        return transformers.LlamaForCausalLM(config)
    experts = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8)
    config = transformers.Qwen3MoeConfig(**SHAPE, **experts)
    return transformers.Qwen3MoeForCausalLM(config)


KINDS = ("Llama", "tied Llama", "Qwen3 MoE")


def tokens(step: int) -> torch.Tensor:
    return torch.randint(32, (4, 8), generator=torch.Generator().manual_seed(step))


def train(model: Any) -> dict[str, Any]:
    """What SelectiveAdamW makes of it; logits between the steps, as an evaluation takes them."""
    optimizer = sft.SelectiveAdamW(model.parameters(), lr=1e-2)
    losses, logits = [], []
    for step in range(STEPS):
        loss = model(input_ids=tokens(step), labels=tokens(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        with torch.no_grad():
            logits.append(model(input_ids=tokens(9)).logits)
    found = {"losses": losses, "logits": torch.stack(logits)}
    return {**found, "weights": whole(sft.revert(model))}


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }


def refused(act: Any) -> str:
    try:
        act()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def main(rank: int) -> dict[str, Any]:
    transformers.logging.set_verbosity_error()
    folder = sys.argv[2]
    if rank == 0:
        for kind in KINDS:
            made(kind).save_pretrained(f"{folder}/{kind}")
    torch.distributed.barrier()

    def loaded(kind: str) -> Any:
        config = DistributedConfig(tp_size=2)
        return transformers.AutoModelForCausalLM.from_pretrained(
            f"{folder}/{kind}", distributed_config=config
        )

    model = loaded("Llama")
    before = refused(lambda: sft.estimate(model, None, 1, 8))
    sft.convert(model, LLAMA)
    ledger = refused(lambda: sft.memory.ledger(model, input_ids=tokens(0), labels=tokens(0)))
    found = {"Llama": train(model), "estimate": before, "ledger": ledger}
    tied = {"model.embed_tokens.weight": sft.Rows([0])}
    found["tied"] = refused(lambda: sft.convert(loaded("tied Llama"), tied))
    for name in (HEADS_NORM, PACKED, EXPERTS):
        plan = {name: sft.Entries([0, 3])}
        found[name] = refused(lambda plan=plan: sft.convert(loaded("Qwen3 MoE"), plan))
    return found


if __name__ == "__main__":
    ranks.fork(int(sys.argv[1]), sys.argv[2], main)
