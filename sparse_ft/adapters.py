"""Which adapters of PEFT a model takes, told where PEFT asks: in `model.peft_config`.

PEFT puts the config of a new adapter into that dict of a model, if it has one, before it changes
anything of the model. A dict that refuses it by name leaves everything as it was.
"""

from typing import Any

from torch import nn

_NAME = "peft_config"
AFTER = (
    "model: it was converted by sft.convert, and PEFT freezes all that is not its own. Let PEFT's"
    " adapters come first: sft.revert(model), peft = get_peft_model(model, config), then"
    " sft.convert(peft, plan), whose names begin with base_model.model. then: both train. What is"
    " to be an adapter itself is SelectiveConfig(plan=plan) of sparse_ft.peft"
)


class Guarded(dict):
    """{adapter: its config}; `check` raises for a config that the model does not take."""

    def check(self, config: Any) -> None:
        raise NotImplementedError

    def __setitem__(self, name: str, config: Any) -> None:
        self.check(config)
        super().__setitem__(name, config)

    def update(self, *others: Any, **more: Any) -> None:  # type: ignore[override]
        new = dict(*others, **more)
        for config in new.values():
            self.check(config)
        super().update(new)


class NoAdapters(Guarded):
    """Of a converted model."""

    def check(self, config: Any) -> None:
        raise ValueError(AFTER)


def refuse_adapters(model: nn.Module) -> None:
    """From now on PEFT's adapters for `model` are refused; those that it has stay."""
    if not hasattr(model, _NAME):
        model.__dict__[_NAME] = NoAdapters()


def allow_adapters(model: nn.Module) -> None:
    """Undo `refuse_adapters`."""
    if isinstance(model.__dict__.get(_NAME), NoAdapters):
        del model.__dict__[_NAME]
