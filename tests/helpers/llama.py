"""A tiny Llama-shaped model on a task that it learns.

Training with selections, and dense with the gradient masked.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import sparse_ft as sft

VOCABULARY, LENGTH, BATCH = 32, 10, 4
STRUCTURES = ("rows", "columns", "blocks", "entries", "entries_per_row")


def tiny_llama(dtype=torch.float32, layers=1, seed=0):
    """Llama with grouped-query attention.

    Its norms are torch's: transformers' round to fp32 inside, always.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=44,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=LENGTH,
        use_cache=False,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(parent, name, nn.RMSNorm(24, eps=1e-6))
    return model.to(dtype)


def batches(steps, seed=1):
    """Walks along one fixed permutation of the vocabulary, from random starts.

    [BATCH, LENGTH] tokens a step.
    """
    generator = torch.Generator().manual_seed(seed)
    following = torch.randperm(VOCABULARY, generator=generator)
    for _ in range(steps):
        walk = [torch.randint(VOCABULARY, (BATCH,), generator=generator)]
        for _ in range(LENGTH - 1):
            walk.append(following[walk[-1]])
        yield torch.stack(walk, 1)


def loss_of(model, tokens):
    """Next-token cross entropy in the model's own dtype (transformers' own loss is fp32)."""
    logits = model(tokens).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def plan_of(structure, density=0.3):
    """A plan on every linear layer of `tiny_llama`.

    "mixed": every structure at once, embedding rows and a norm too.
    """
    model = tiny_llama()
    names = sorted(
        n for n, _ in model.named_parameters() if n.endswith(("proj.weight", "lm_head.weight"))
    )
    if structure != "mixed":
        return sft.select(
            model, density=density, structure=structure, targets=names, block_size=(10, 7)
        )
    plan = {}
    for i, name in enumerate(names):
        kind = STRUCTURES[i % len(STRUCTURES)]
        plan |= sft.select(model, density=density, structure=kind, targets=name, block_size=(10, 7))
    plan["model.embed_tokens.weight"] = sft.Rows(torch.arange(0, VOCABULARY, 2))
    plan["model.norm.weight"] = sft.Columns(torch.arange(0, 24, 3))
    return sft.Plan(plan)


def weights_of(model, plan):
    """{name: a copy of the weight as it stands}.

    Reading a selective module's weight synchronises it.
    """
    found = {}
    for name in plan:
        path, _, attribute = name.rpartition(".")
        found[name] = getattr(model.get_submodule(path), attribute).detach().clone()
    return found


def masks_of(model, plan):
    """{name: bool mask in the weight's own shape}."""
    return {
        name: what.mask(sft.matrix_shape(model, name)).view(model.get_parameter(name).shape)
        for name, what in plan.items()
    }


def train(model, optimizer, steps, plan=None, snapshots=()):
    """Plain training, one batch a step.

    Returns the losses and {step: weights of `plan`} at each of `snapshots`.
    """
    losses, taken = [], {}
    for step, tokens in enumerate(batches(steps), 1):
        loss = loss_of(model, tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step in snapshots:
            taken[step] = weights_of(model, plan)
    return losses, taken


def train_dense(plan, dtype, steps, make_optimizer, weight_decay=0.0, decoupled=True, snapshots=()):
    """Dense training with the gradient masked and decay applied to the selected entries only.

    make_optimizer: called on the weights; must not decay on its own. decoupled: decay as in AdamW
    (by the optimiser's "lr"), else as an L2 term in the gradient. Returns {step: weights} for each
    step of `snapshots` and the last.
    """
    model = tiny_llama(dtype)
    masks, taken = masks_of(model, plan), {}
    weights = {name: model.get_parameter(name) for name in plan}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    optimizer = make_optimizer(list(weights.values()))
    for step, tokens in enumerate(batches(steps), 1):
        optimizer.zero_grad()
        loss_of(model, tokens).backward()
        with torch.no_grad():
            for name, weight in weights.items():
                if not decoupled:
                    weight.grad.add_(weight, alpha=weight_decay)
                weight.grad.masked_fill_(~masks[name], 0)
                if decoupled:
                    kept = 1 - optimizer.param_groups[0]["lr"] * weight_decay
                    weight.copy_(torch.where(masks[name], weight * kept, weight))
        optimizer.step()
        if step in snapshots or step == steps:
            taken[step] = weights_of(model, plan)
    return taken


def train_compact(plan, dtype, steps, make_optimizer, snapshots=()):
    """As `train_dense`, with the optimiser on compact copies of the selected entries and hand-made
    gradients for them.

    For optimisers whose step depends on the parameter's shape. make_optimizer: called on the
    compact parameters.
    """
    model, taken = tiny_llama(dtype), {}
    model.requires_grad_(False)
    weights = {name: model.get_parameter(name).requires_grad_(True) for name in plan}
    matrices = {
        name: weight.detach().view(sft.matrix_shape(model, name))
        for name, weight in weights.items()
    }
    compact = {name: nn.Parameter(what.gather(matrices[name])) for name, what in plan.items()}
    optimizer = make_optimizer(list(compact.values()))
    for step, tokens in enumerate(batches(steps), 1):
        model.zero_grad()
        loss_of(model, tokens).backward()
        for name, what in plan.items():
            compact[name].grad = what.gather(weights[name].grad.view(matrices[name].shape))
        optimizer.step()
        with torch.no_grad():
            for name, what in plan.items():
                what.scatter_(matrices[name], compact[name].detach())
        if step in snapshots or step == steps:
            taken[step] = weights_of(model, plan)
    return taken


def assert_unselected_untouched(model, plan, dtype):
    """Every entry that `plan` does not select has the bits it was born with."""
    born, masks = tiny_llama(dtype), masks_of(tiny_llama(dtype), plan)
    now = weights_of(model, plan)
    for name, parameter in born.named_parameters():
        if name not in plan:
            now[name], masks[name] = (
                model.get_parameter(name).detach(),
                torch.zeros_like(parameter, dtype=torch.bool),
            )
        bits = torch.int64 if dtype == torch.float64 else torch.int32
        changed = (now[name].view(bits) != parameter.detach().view(bits)) & ~masks[name]
        assert not changed.any(), f"{name}: {int(changed.sum())} unselected entries changed"


def furthest(a, b):
    """Largest absolute difference between two {name: weight}."""
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def distance(a, b):
    """Euclidean distance between two {name: weight}."""
    return sum((a[name].double() - b[name].double()).square().sum().item() for name in a) ** 0.5
