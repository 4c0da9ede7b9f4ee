"""Small models of many architectures, in fp64 and without dropout, with batches to choose by and
the weights to choose from.
"""

from typing import NamedTuple

import torch
import transformers
from torch import nn

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
DECODER = {**SMALL, "vocab_size": 24, "num_attention_heads": 4, "max_position_embeddings": 16}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Case(NamedTuple):
    """model; two batches of three examples; targets: what `select` is told, None for its own."""

    model: nn.Module
    batches: list[dict[str, torch.Tensor]]
    targets: list[str] | None = None


def tokens(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(3, 24, (3, 7), generator=generator)


def language(model: nn.Module, targets: list[str] | None = None) -> Case:
    batches = []
    for number in range(2):
        ids = tokens(number)
        batches.append({"input_ids": ids, "labels": ids})
    return Case(model.double().eval(), batches, targets)


def bert() -> Case:
    config = transformers.BertConfig(
        **SMALL, vocab_size=24, num_attention_heads=4, max_position_embeddings=16, num_labels=3
    )
    model = transformers.BertForSequenceClassification(config).double().eval()
    batches = []
    for number in range(2):
        mask = torch.ones(3, 7, dtype=torch.int64)
        mask[1, 5:] = 0
        labels = torch.tensor([0, 2, 1]).roll(number)
        batches.append({"input_ids": tokens(number), "attention_mask": mask, "labels": labels})
    return Case(model, batches)


def llama() -> Case:
    config = transformers.LlamaConfig(**DECODER, **ENDS, num_key_value_heads=2)
    return language(transformers.LlamaForCausalLM(config))


def qwen_moe() -> Case:
    config = transformers.Qwen2MoeConfig(
        **DECODER,
        **ENDS,
        num_key_value_heads=2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=12,
    )
    names = ["*experts.gate_up_proj", "*experts.down_proj", "*q_proj.weight", "*mlp.gate.weight"]
    case = language(transformers.Qwen2MoeForCausalLM(config), names)
    case.model.float()  # torch has no grouped products in fp64
    return case


def phi3() -> Case:
    config = transformers.Phi3Config(**DECODER, **ENDS, num_key_value_heads=2)
    return language(transformers.Phi3ForCausalLM(config))


def gpt2() -> Case:
    config = transformers.GPT2Config(
        vocab_size=24,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return language(transformers.GPT2LMHeadModel(config))


def gpt_neox() -> Case:
    config = transformers.GPTNeoXConfig(**DECODER, bos_token_id=1, eos_token_id=2)
    return language(transformers.GPTNeoXForCausalLM(config))


def vit() -> Case:
    config = transformers.ViTConfig(
        **SMALL, num_attention_heads=4, image_size=8, patch_size=4, num_labels=3
    )
    return pictures(transformers.ViTForImageClassification(config))


class Net(nn.Module):
    """A convnet by transformers' convention of arguments and output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.last = nn.Linear(8, 3)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
        hidden = self.norm(self.first(pixel_values)).relu()
        logits = self.last(self.grouped(hidden).tanh().mean((2, 3)))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def pictures(model: nn.Module) -> Case:
    batches = []
    for number in range(2):
        generator = torch.Generator().manual_seed(number)
        values = torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64)
        batches.append({"pixel_values": values, "labels": torch.tensor([0, 2, 1]).roll(number)})
    return Case(model.double().eval(), batches)


def convnet() -> Case:
    return pictures(Net())


CASES = {
    "BERT": bert,
    "Llama": llama,
    "Qwen-MoE": qwen_moe,
    "Phi-3": phi3,
    "GPT-2": gpt2,
    "GPT-NeoX": gpt_neox,
    "ViT": vit,
    "convnet": convnet,
}


def case(kind: str) -> Case:
    """The same each time."""
    torch.manual_seed(0)
    return CASES[kind]()
