"""Recipes that train whole modules: layers, kinds of weights, routers, factors of an adapter."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..families import families
from ..plan import ALL, Plan
from ..salience import layer_scores, select
from ..salience.lots import drawn
from ..salience.units import count_of
from . import parts
from .recipe import recipe
from .settings import check_count, check_part

Targets = str | Iterable[str] | None


def all_of(names: Iterable[str]) -> Plan:
    """The plan in which these train whole."""
    return Plan(dict.fromkeys(names, ALL))


def best_layers(
    model: nn.Module, worth: dict[str, float], density: float | None, layers: int | None
) -> Plan:
    """The layers that are worth the most: so many, or as many as hold `density` of the entries."""
    blocks = parts.blocks_of(model)
    ranked = sorted(worth, key=lambda name: -worth[name])
    return all_of(name for layer in _taken(model, ranked, blocks, density, layers)
                  for name in blocks[layer])  # fmt: skip


def _taken(
    model: nn.Module, ranked: list[str], blocks: dict[str, list[str]], density: Any, layers: Any
) -> list[str]:
    if density is None:
        return ranked[:layers]
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    left = density * sum(sizes[name] for names in blocks.values() for name in names)
    taken: list[str] = []
    for layer in ranked:
        size = sum(sizes[name] for name in blocks[layer])
        if taken and size > left:
            break
        taken.append(layer)
        left -= size
    return taken


@recipe("attention_only", "Touvron et al. 2022, arXiv:2203.09795")
def attention_only(model: nn.Module, batches: Any, *, targets: Targets = None) -> Plan:
    """the weights of attention, whole

    Those in modules whose name says attention or attn; biases and norms stay. Returns the plan.
    """
    names = parts.attention_and_rest(model, targets)["attention"]
    if not names:
        raise ValueError("model: no name of its modules says attention; name them in targets=")
    return all_of(names)


@recipe("gate_and_up", "Zhu et al. 2025 (new skills), arXiv:2510.08564")
def gate_and_up(model: nn.Module, batches: Any, *, targets: Targets = None) -> Plan:
    """the feed-forward weights that read the residual stream (gate and up), whole

    Known by their shapes, not their names; with 3-D experts name them in targets=. Returns the
    plan.
    """
    return all_of(parts.into_feed_forward(model, targets))


@recipe("routers", "Router-Tuning, He et al. 2024, arXiv:2410.13184")
def routers(model: nn.Module, batches: Any) -> Plan:
    """the routers of a mixture of experts, whole

    Those that hold one row an expert, beside the experts. The paper's routers say which layers a
    token skips; the rule, that routers alone train, is the same. Returns the plan.
    """
    return all_of(parts.routers_of(model))


@recipe("hft", "HFT, Hui et al. 2024, arXiv:2404.18466", {"density": 0.5})
def hft(
    model: nn.Module, batches: Any, *, density: float = 0.5, targets: Targets = None, seed: int = 0
) -> Plan:
    """half of the matrices of every block, drawn at random for each category, whole

    Categories are attention and the rest of a block; where half of them is no whole number it is
    rounded down in one block and up in the next, so that half of all trains. Fixed for the run; the
    paper draws anew for each round of data: take another seed. Returns the plan.
    """
    chosen: list[str] = []
    names = parts.attention_and_rest(model, targets)
    blocks = parts.blocks_of(model)
    for label, weights in names.items():
        owed = 0.0
        for number, block in enumerate(blocks):
            inside = [name for name in weights if name.startswith(f"{block}.")]
            owed += density * len(inside)
            count = min(len(inside), int(owed + 1e-9))
            owed -= count
            kind = 0 if label == "attention" else 1
            lots = drawn(len(inside), count, (seed * 1_000_003 + number) * 2 + kind)
            chosen += [inside[at] for at in sorted(lots.tolist())]
    if not chosen:
        raise ValueError(f"density: {density!r} of the weights of its blocks is none")
    return all_of(chosen)


@recipe(
    "spafit", "SPAFIT, Arora and Wang 2024, arXiv:2405.00201", {"frozen": 1 / 3, "biases": 1 / 3}
)
def spafit(model: nn.Module, batches: Any, *, frozen: float = 1 / 3, biases: float = 1 / 3) -> Plan:
    """the first blocks frozen, the biases of the next ones, all of the last ones

    frozen, biases: shares of the blocks. The paper puts LoRA into the last group; here its weights
    train whole (`sft.select(targets=…)` chooses of them). Returns the plan.
    """
    check_part("frozen", frozen)
    check_part("biases", biases)
    blocks = list(parts.blocks_of(model).values())
    first = round(frozen * len(blocks))
    second = first + round(biases * len(blocks))
    chosen = []
    for number, names in enumerate(blocks[first:], first):
        is_bias = [name for name in names if name.endswith("bias")]
        chosen += names if number >= second else is_bias
    if not chosen:
        raise ValueError(f"frozen: with {frozen!r} and biases={biases!r} nothing trains")
    return all_of(chosen)


@recipe(
    "surgical_fim", "Surgical fine-tuning by Fisher information, Lodha et al. 2023,"
    " arXiv:2310.17041", {"layers": 1}, follows="paper",
)  # fmt: skip
def surgical_fim(
    model: nn.Module,
    batches: Any,
    *,
    layers: int = 1,
    density: float | None = None,
    loss: Any = None,
    max_batches: int | None = None,
) -> Plan:
    """the blocks with the largest Fisher information, Σ E g² over single examples, whole

    Of every batch and example, of the log-probabilities that the loss is made of, with the
    attention mask of the batch; a released version looks at the first batch's raw logits only, and
    without the mask. layers: how many; or density: their share of the entries. Returns the plan.
    """
    if density is None:
        parts.check_blocks("layers", layers, parts.blocks_of(model))
    worth = layer_scores.total(model, "fisher", batches=batches, loss=loss, max_batches=max_batches)
    return best_layers(model, worth, density, layers)


@recipe("ram_mac", "RAM and RAM++ (module-wise conductance)", {"layers": 1}, follows="description")
def ram_mac(
    model: nn.Module,
    batches: Any,
    *,
    layers: int = 1,
    density: float | None = None,
    loss: Any = None,
    steps: int = 8,
    max_batches: int | None = None,
) -> Plan:
    """the blocks with the largest conductance from an empty input to the whole one, whole

    Conductance as `sft.layer_scores.conductance` has it, over `steps`. layers: how many; or
    density: their share of the entries. Returns the plan.
    """
    if density is None:
        parts.check_blocks("layers", layers, parts.blocks_of(model))
    check_count("steps", steps)
    worth = layer_scores.conductance(
        model, batches, loss=loss, steps=steps, max_batches=max_batches
    )
    return best_layers(model, worth, density, layers)


@recipe("spectrum", "Spectrum, Hartford et al. 2024, arXiv:2406.06623", {"density": 0.25},
        follows="code")  # fmt: skip
def spectrum(
    model: nn.Module, batches: Any, *, density: float = 0.25, targets: Targets = None
) -> Plan:
    """of each kind of weight the layers with the best signal-to-noise ratio, whole

    Kinds: weights whose names differ in the number of their layer. density: the share of the layers
    of each kind, one at least. Returns the plan.
    """
    ratio = layer_scores.snr(model, targets=targets)
    chosen = set()
    for family in families((name, None) for name in ratio):
        ranked = sorted(family.names, key=lambda name: -ratio[name])
        chosen |= set(ranked[: count_of(len(ranked), density)])
    return all_of(name for name in ratio if name in chosen)


@recipe("fpf", "FPF (fine-tuning of the most task-sensitive modules)", {"modules": 2},
        follows="description")  # fmt: skip
def fpf(
    model: nn.Module,
    batches: Any,
    *,
    modules: int = 2,
    targets: Targets = None,
    loss: Any = None,
    max_batches: int | None = None,
) -> Plan:
    """the linear layers with the largest Fisher information, Σ E g² over single examples, whole

    modules: how many. k-FPF chooses anew every k steps: call it again on the reverted model, or
    rotate with `badam`. Returns the plan.
    """
    check_count("modules", modules)
    return select(
        model,
        structure="tensors",
        score="fisher",
        budget=modules,
        batches=batches,
        targets=targets,
        loss=loss,
        max_batches=max_batches,
    )


@recipe("asymmetric", "Asymmetry in LoRA, Zhu et al. 2024, arXiv:2402.16842")
def asymmetric(model: nn.Module, batches: Any) -> Plan:
    """of LoRA's factors B alone; A stays as it was drawn

    The model has an adapter of PEFT. Returns the plan; the input of A is not held for a gradient
    of A then.
    """
    return all_of(parts.adapters_of(model, "B"))


@recipe("lora_sp", "LoRA-SP, Wu et al. 2024, arXiv:2403.08822", {"density": 0.5})
def lora_sp(model: nn.Module, batches: Any, *, density: float = 0.5, seed: int = 0) -> Plan:
    """half of LoRA's factors, drawn at random, whole

    The model has an adapter of PEFT. Returns the plan.
    """
    factors = [*parts.adapters_of(model, "A"), *parts.adapters_of(model, "B")]
    lots = drawn(len(factors), count_of(len(factors), density), seed)
    return all_of(factors[at] for at in sorted(lots.tolist()))


@recipe("sketched", "LoRA with a count sketch as A (Charikar et al. 2002)", follows="description")
def sketched(model: nn.Module, batches: Any, *, seed: int = 0) -> Plan:
    """of LoRA's factors B alone, over a count sketch: every input goes to one rank, with a sign

    The model has a fresh adapter of PEFT, whose A **is written**: [ranks, inputs] with one ±1 a
    column. B is zero at first, so the model computes what it did. Raises ValueError where it is
    not. Returns the plan.
    """
    parameters = dict(model.named_parameters())
    seconds = parts.adapters_of(model, "B")
    if any(parameters[name].detach().any() for name in seconds):
        raise ValueError("model: its LoRA has trained already; a sketch is for a fresh adapter")
    generator = torch.Generator().manual_seed(seed)
    for name in parts.adapters_of(model, "A"):
        weight = parameters[name].detach()
        ranks, inputs = weight.shape
        to = torch.randint(ranks, (inputs,), generator=generator, device="cpu")
        signs = torch.randint(2, (inputs,), generator=generator, device="cpu") * 2.0 - 1
        sketch = torch.zeros(ranks, inputs, dtype=torch.float32, device="cpu")
        sketch[to, torch.arange(inputs, device="cpu")] = signs
        weight.copy_(sketch)
    return all_of(seconds)
