"""SparsePlugin: axolotl trains the selected entries of its model.

plugins:
  - sparse_ft.trainers.axolotl.SparsePlugin
sparse_ft:
  density: 0.01
  structure: columns
  score: magnitude

"""

from typing import Any

from torch import nn

from ..conversion import convert
from ..plan import ALL, Plan
from ..salience import select

try:
    from axolotl.integrations.base import BasePlugin
except ImportError:  # the steps of a plugin can be called all the same
    BasePlugin = object

_SECTION = "sparse_ft"
_CHOICE = ("density", "structure", "score", "block_size", "seed", "targets")
_OPTIONS = (*_CHOICE, "plan", "lean")


class SparsePlugin(BasePlugin):
    """Converts the model after it is loaded, and keeps checkpoints small.

    The section `sparse_ft` of the config: density, structure, score ("magnitude", or "random"),
    block_size, seed and targets as `sparse_ft.select` takes them, or plan, the path of a file that
    `Plan.save` wrote; lean as in `sparse_ft.convert`. With `adapter:` (LoRA) in the config both
    train, the selection in the base's weights. Raises ValueError that names the option.
    """

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, Any] = {}

    def register(self, cfg: dict[str, Any]) -> None:
        """axolotl has read its config, not validated yet: look at our section."""
        options = dict(cfg.get(_SECTION) or {})
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise ValueError(f"{_SECTION}.{unknown[0]}: expected one of {', '.join(_OPTIONS)}")
        if "plan" in options and any(name in options for name in _CHOICE):
            raise ValueError(
                f"{_SECTION}.plan: it says what trains; leave {', '.join(_CHOICE)} out"
            )
        if "plan" not in options and "density" not in options:
            raise ValueError(f"{_SECTION}: expected density: a share in (0, 1], or plan: a file")
        if options.get("score") == "gradient":
            raise ValueError(
                f"{_SECTION}.score: 'gradient' needs batches, which a plugin is not given; rank by"
                " sft.select(batches=…), Plan.save, and give the file as plan"
            )
        self.options = options

    def get_input_args(self) -> str:
        """Where the pydantic model of our section is: axolotl refuses what no model has."""
        return "sparse_ft.trainers.axolotl_arguments.SparseArguments"

    def post_model_load(self, cfg: Any, model: nn.Module) -> None:
        """The model is loaded, with its adapters."""
        options = self.options
        if "plan" in options:
            plan = Plan.load(options["plan"])
        else:
            choice = {name: options[name] for name in _CHOICE if name in options}
            plan = select(model, **{"score": "random", **choice})
        adapters = {}
        if getattr(model, "peft_config", None):  # which has frozen everything else
            trained = (name for name, p in model.named_parameters() if p.requires_grad)
            adapters = dict.fromkeys(trained, ALL)
        print(convert(model, plan | adapters, lean=options.get("lean", False)))

    def add_callbacks_pre_trainer(self, cfg: Any, model: nn.Module) -> list[Any]:
        """Checkpoints as small as the run."""
        from .hugging_face import SparseCallback

        return [SparseCallback()]
