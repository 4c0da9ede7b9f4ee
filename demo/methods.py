"""The methods compared: what each one trains, with which optimiser, at which learning rate."""

import warnings
from dataclasses import dataclass, replace

import torch

from demo.errors import DemoError
from demo.model import body_linears, head_modules, head_parameters

LORA_RANK = 8
LORA_SIZE = "lora"  # the density that trains as many entries as LoRA does
STRUCTURES = ("columns", "rows", "blocks", "entries", "entries_per_row")  # chosen by gradient
RECIPES = ("shira",)  # the best of bench/results/methods.md, by its validation
WAYS = STRUCTURES + RECIPES
KINDS = ("full", "lora", "ours", "lean", "head")  # lean: ours at the last share, with lean modules
NAMES = {"shira": "SHiRA"}
WEIGHT_DECAY = 0.01
BLOCK_SIZE = 32  # entries on a side, for --structure blocks
SCORE_BATCHES = 4  # batches whose gradient chooses what trains


@dataclass(frozen=True)
class Method:
    kind: str  # one of KINDS
    structure: str = ""  # of ours, one of WAYS
    density: float | str = 0.0  # of ours: share of the body's linear weights, or LORA_SIZE
    lean: bool = False  # of ours: with `sft.lean`

    @property
    def key(self):
        """Name in LEARNING_RATES."""
        if self.kind != "ours":
            return self.kind
        size = LORA_SIZE if self.density == LORA_SIZE or self.density >= 0.02 else "1%"
        return f"{self.structure}@{size}"

    @property
    def label(self):
        names = {
            "full": "full fine-tuning",
            "lora": f"LoRA r={LORA_RANK} (PEFT)",
            "head": "head only",
        }
        if self.kind != "ours":
            return names[self.kind]
        size = "LoRA's size" if self.density == LORA_SIZE else f"{100 * self.density:.3g} %"
        way = NAMES.get(self.structure, self.structure)
        return f"ours, {way}, {size}{', lean' if self.lean else ''}"


def methods_of(kinds, structures, densities):
    """[Method] in the order of the table.

    `ours` stands once for each structure and density, `lean` for each structure.
    """
    chosen = []
    for kind in kinds:
        if kind == "ours":
            chosen += [
                Method("ours", structure, density)
                for structure in structures
                for density in densities
            ]
        elif kind == "lean":
            chosen += [
                Method("ours", structure, densities[-1], lean=True) for structure in structures
            ]
        else:
            chosen.append(Method(kind))
    return chosen


def resolved(model, method):
    """The method with LORA_SIZE replaced by a number: sum of r (in + out) over sum of in * out."""
    if method.density != LORA_SIZE:
        return method
    shapes = [model.get_submodule(name).weight.shape for name in body_linears(model)]
    adapters = sum(LORA_RANK * (rows + columns) for rows, columns in shapes)
    return replace(method, density=adapters / sum(rows * columns for rows, columns in shapes))


def prepare(model, method, batches, lr, seed):
    """(model, optimiser) ready to train.

    `batches` are the training batches that ours may look at to choose.
    """
    if method.kind == "ours":
        return _ours(model, method, batches, lr, seed)
    if method.kind == "lora":
        model = _lora(model)
    if method.kind == "head":
        names = set(head_parameters(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=lr, weight_decay=WEIGHT_DECAY, fused=True)


def _lora(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        lora_dropout=0.0,
        target_modules=body_linears(model),
        modules_to_save=head_modules(model),
    )
    with warnings.catch_warnings():
        # PEFT asks transformers for a renamed attribute.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def _ours(model, method, batches, lr, seed):
    import sparse_ft as sft

    targets = [f"{name}.weight" for name in body_linears(model)]
    head = {name: "all" for name in head_parameters(model)}
    if method.structure in RECIPES:
        return _by_recipe(model, method, targets, head, lr, seed)
    extra = {"block_size": BLOCK_SIZE} if method.structure == "blocks" else {}
    plan = sft.select(
        model,
        density=method.density,
        structure=method.structure,
        score="gradient",
        targets=targets,
        batches=batches,
        loss=lambda model, batch: model(**batch).loss,
        seed=seed,
        recompute=True,  # choosing holds less than training then
        **extra,
    )
    sft.convert(model, plan | head, lean=method.lean)
    return model, sft.SelectiveAdamW(model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)


def _by_recipe(model, method, targets, head, lr, seed):
    import sparse_ft as sft

    recipe = sft.recipes.get(method.structure)
    plan = recipe(model, density=method.density, targets=targets, seed=seed)
    to_origin = recipe.decay_to == "origin"
    sft.convert(model, plan | head, lean=method.lean, origin=to_origin)
    return model, sft.SelectiveAdamW(
        model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, decay_to=recipe.decay_to
    )


def learning_rate(method, table):
    """The tuned rate; a structure or size that was not tuned borrows from its nearest relative."""
    tuned = LEARNING_RATES[table]
    relatives = {"rows": "columns", "blocks": "columns", "entries_per_row": "entries"}
    structure, _, size = method.key.partition("@")
    key = f"{relatives.get(structure, structure)}@{size}" if size else structure
    return tuned[key][0]


def parse_lr(text):
    """{key or "": rate} of "1e-3" (every method) or "full=5e-5,columns=1e-3" (kinds or
    structures).
    """
    rates = {}
    for item in filter(None, (text or "").split(",")):
        name, _, number = item.rpartition("=")
        if name not in ("", *KINDS, *WAYS):
            raise DemoError(
                f"--lr: unknown method or structure {name!r}; known: {', '.join(KINDS + WAYS)}"
            )
        try:
            rates[name] = float(number)
        except ValueError:
            raise DemoError(f"--lr: {number!r} is not a number") from None
        if not 0 < rates[name] < float("inf"):
            raise DemoError(f"--lr: {number} is not a positive number")
    return rates


# Chosen with `python -m demo --tune` (digits: `--offline --tune --steps 60`): as many rates a
# method, two or three times the one before, moved until the best was not at an edge; seed 0,
# accuracy on the validation split. {method: (chosen rate, {rate: validation accuracy})}
LEARNING_RATES = {
    "reviews": {
        "full": (1.5e-4, {7.5e-5: 0.766, 1.5e-4: 0.789, 3e-4: 0.788}),
        "lora": (3e-3, {1.5e-3: 0.777, 3e-3: 0.786, 6e-3: 0.694}),
        "columns@lora": (1.5e-3, {7.5e-4: 0.753, 1.5e-3: 0.771, 3e-3: 0.743}),
        "columns@1%": (2.5e-3, {1.25e-3: 0.753, 2.5e-3: 0.756, 5e-3: 0.718}),
        "entries@lora": (1.25e-3, {6e-4: 0.750, 1.25e-3: 0.792, 2.5e-3: 0.775}),
        "entries@1%": (2.5e-3, {1.25e-3: 0.754, 2.5e-3: 0.770, 5e-3: 0.762}),
        "shira@lora": (6e-3, {3e-3: 0.780, 6e-3: 0.792, 1.2e-2: 0.742}),
        "shira@1%": (2e-2, {1e-2: 0.780, 2e-2: 0.784, 4e-2: 0.738}),
        "head": (3e-1, {1.5e-1: 0.621, 3e-1: 0.622, 6e-1: 0.622}),
    },
    "digits": {
        "full": (1.5e-3, {5e-4: 0.360, 1.5e-3: 0.455, 5e-3: 0.370}),
        "lora": (5e-3, {1.5e-3: 0.310, 5e-3: 0.420, 1.5e-2: 0.075}),
        "columns@lora": (1.5e-2, {5e-3: 0.400, 1.5e-2: 0.455, 5e-2: 0.080}),
        "columns@1%": (5e-2, {1.5e-2: 0.350, 5e-2: 0.410, 1.5e-1: 0.395}),
        "entries@lora": (1.5e-2, {5e-3: 0.400, 1.5e-2: 0.500, 5e-2: 0.090}),
        "entries@1%": (5e-2, {1.5e-2: 0.360, 5e-2: 0.380, 1.5e-1: 0.215}),
        "shira@lora": (1.5e-2, {5e-3: 0.375, 1.5e-2: 0.505, 5e-2: 0.225}),
        "shira@1%": (1.5e-1, {5e-2: 0.500, 1.5e-1: 0.585, 5e-1: 0.135}),
        "head": (5e-2, {1.5e-2: 0.270, 5e-2: 0.300, 1.5e-1: 0.270}),
    },
}
