"""Small mixtures of experts of transformers, and one whose experts are modules."""

import torch
import transformers
from torch import nn

EXPERTS, WIDTH, INNER = 8, 16, 24
DECODER = {
    "vocab_size": 32,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "moe_intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
DEEPSEEK = {
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
    "num_key_value_heads": 2,
    "n_shared_experts": 1,
    "head_dim": 4,
}
FAMILIES = {
    "Mixtral": {},
    "Qwen3Moe": {},
    "Olmoe": {},
    "DeepseekV3": DEEPSEEK,
    "GptOss": {"layer_types": ["full_attention"]},
}


def build(family: str, implementation: str = "eager", dtype: torch.dtype = torch.float64):
    """(model in training mode, batch, path of its experts)."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**DECODER, **FAMILIES[family]})
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype)
    model.set_experts_implementation(implementation)
    tokens = torch.randint(3, 32, (2, 12))
    path = next(n for n, m in model.named_modules() if "gate_up_proj" in m._parameters)
    return model.train(), {"input_ids": tokens, "labels": tokens}, path


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x):
        return self.down(self.up(x).relu())


class InModules(nn.Module):
    """Experts in a ModuleList; each token goes to two, none to the last one."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS - 1)
        self.experts = nn.ModuleList([Expert() for _ in range(EXPERTS)])

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            if len(token):
                out = out.index_add(0, token, expert(x[token]) * weights[token, slot, None])
        return out
