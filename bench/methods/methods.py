"""The methods of the table: what each trains, and with which rates it may be tried."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch

WEIGHT_DECAY = 0.01
SCORE_BATCHES = 4  # training batches that a recipe may look at to choose
RATES = {"full": 1.5e-4, "lora": 3e-3, "recipe": 3e-3}  # where the search begins
STEP = 3.0  # from one rate to the next
MOST = 4  # rates a method
LORA_RANK = 2


@dataclass(frozen=True)
class Method:
    """kind: "full", "lora" or "recipe". settings: of the recipe, beside budget and batches.

    like_lora: a rank, where a recipe trains as many entries as LoRA does with it, in the place of
    the table's density.
    """

    name: str
    kind: str = "recipe"
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    needs_batches: bool = True
    like_lora: int = 0

    @property
    def rates(self):
        """The first three rates, the middle one first."""
        middle = RATES[self.kind]
        return [middle, middle / STEP, middle * STEP]


def _recipe(name, recipe="", needs_batches=True, like_lora=0, **settings):
    return Method(name, "recipe", settings, recipe or name, needs_batches, like_lora)


BASELINES = [
    Method("full", "full"),
    Method("lora_r1", "lora", {"rank": 1}),
    Method("lora", "lora", {"rank": LORA_RANK}),
    Method("dora", "lora", {"rank": LORA_RANK, "use_dora": True}),
]


def recipes(steps):
    """The recipes of the table. steps: of a run, which schedules are spread over."""
    return [
        _recipe("fish"),
        _recipe("gps"),
        _recipe("neuroada", needs_batches=False),
        _recipe("sift"),
        _recipe("speft_random", needs_batches=False),
        _recipe("speft_magnitude", needs_batches=False),
        _recipe("speft_gradient"),
        _recipe("speft_gradient_bounded", "speft_gradient", floor=0.001, cap=0.02),
        _recipe("speft_snip"),
        _recipe("speft_force"),
        _recipe("speft_taylor"),
        _recipe("speft_synflow"),
        _recipe("speft_grasp"),
        _recipe("tr_pts"),
        _recipe("shira", needs_batches=False),
        _recipe("shira_as_lora", "shira", needs_batches=False, like_lora=LORA_RANK),
        _recipe("super_tuning", needs_batches=False),
        _recipe("paca", needs_batches=False),
        _recipe("smt", block_size=32),
        _recipe("gradient_columns"),
        _recipe("gradient_rows", "gradient_columns", structure="rows"),
        _recipe("activation_columns"),
        _recipe("lift", needs_batches=False, filter_rank=32, every=max(1, steps // 3)),
        _recipe("spiel", every=max(2, steps // 15), collect=max(1, steps // 60), total=steps),
        _recipe("losia", every=max(1, steps // 10), warm=max(1, steps // 60)),
        _recipe("spt", columns=8),
        _recipe("s2ft", scope="global"),
        _recipe("sparsegrad"),
        _recipe("lt_sft", steps=max(1, steps // 10), lr=1e-4),
        _recipe("ist", layers=2, every=max(1, steps // 30), probe=max(1, steps // 10)),
    ]


TEXT = ("gradient_columns", "gps", "neuroada", "shira", "lift", "spiel", "losia", "tr_pts")


def methods_of(task, steps):
    """{name: Method} of a task's table, in its order."""
    chosen = recipes(steps)
    if task == "text":
        chosen = [each for each in chosen if each.name in TEXT]
    return {each.name: each for each in [*BASELINES, *chosen]}


def prepare(model, method, density, batches, lr, seed, head):
    """(model, optimiser, process or None), ready to train.

    head: globs of what trains whole in every method.
    """
    if method.kind == "recipe":
        return _by_recipe(model, method, density, batches, lr, seed, head)
    if method.kind == "lora":
        model = _lora(model, method.settings, head)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=lr, weight_decay=WEIGHT_DECAY, fused=True), None


def _lora(model, settings, head):
    from peft import LoraConfig, get_peft_model

    from sparse_ft.recipes.parts import weights_of

    rank = settings["rank"]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        use_dora=settings.get("use_dora", False),
        target_modules=[name.removesuffix(".weight") for name in weights_of(model)],
        modules_to_save=[pattern.removesuffix(".*") for pattern in head] or None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for a renamed attribute
        return get_peft_model(model, config)


def _by_recipe(model, method, density, batches, lr, seed, head):
    import sparse_ft as sft

    recipe = sft.recipes.get(method.recipe)
    settings = {"density": density, **method.settings}
    if method.like_lora:
        settings["budget"] = sft.LikeLora(method.like_lora)
        del settings["density"]
    if "seed" in recipe.settings:
        settings["seed"] = seed
    made = recipe(model, batches if method.needs_batches else None, also=head, **settings)
    if isinstance(made, sft.Plan):
        to_origin = recipe.decay_to == "origin"
        sft.convert(model, made, lean=True, origin=to_origin)
        optimizer = sft.SelectiveAdamW(
            model.parameters(), lr, weight_decay=WEIGHT_DECAY, decay_to=recipe.decay_to
        )
        return model, optimizer, None
    return model, made.start(model, lr, lean=True, weight_decay=WEIGHT_DECAY), made
