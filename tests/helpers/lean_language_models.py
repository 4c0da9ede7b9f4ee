"""What `sft.lean` does under another release of transformers, which lies in a folder, as JSON.

python lean_language_models.py FOLDER
"""

import json
import sys
import warnings

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    warnings.simplefilter("ignore")

    try:
        import transformers
    except ImportError as error:
        print(json.dumps({"cannot": str(error)}))
        sys.exit()

import torch
import transformers

import sparse_ft as sft

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 500,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 500,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
CONFIGS = {
    "llama": SMALL,
    "qwen3": SMALL,
    "gpt2": GPT2,
    "mixtral": {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": SMALL,
    "phi3": SMALL,
    "glm": SMALL,
}


def step(model: torch.nn.Module, batch: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """(the loss of a batch, the gradients by name)."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads


def measure(kind: str) -> dict:
    """What becomes lean of one model, how far results move, and the bytes kept before and after."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    tokens = torch.randint(3, 500, (2, 40))
    batch = {"input_ids": tokens, "labels": tokens}
    loss, grads = step(model, batch)
    before = sft.memory.ledger(model, **batch).total
    report = sft.lean(model, loss=True)
    lean_loss, lean_grads = step(model, batch)
    total = torch.stack([grad.norm() for grad in grads.values()]).norm()
    apart = torch.stack([(lean_grads[name] - grad).norm() for name, grad in grads.items()]).norm()
    return {
        "changed": len(report.changed),
        "left": report.left,
        "loss is lean": "" in report.changed,
        "attention": report.attention,
        "loss apart": abs(lean_loss - loss),
        "gradients apart": (apart / total).item(),
        "before": before,
        "after": sft.memory.ledger(model, **batch).total,
    }


if __name__ == "__main__":
    models = {kind: measure(kind) for kind in CONFIGS}
    where = transformers.__file__
    print(json.dumps({"release": transformers.__version__, "from": where, "models": models}))
