"""SelectiveModel: PEFT's tuner for selective adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ..adapters import Guarded
from ..selection import Selection
from .choosing import check_alone, choose
from .config import SelectiveConfig
from .layer import SelectiveLayer
from .registration import PREFIX
from .slot import describe_slot


class Configs(Guarded):
    """{adapter: its config} of a model with selective adapters, which takes no others."""

    def check(self, config: Any) -> None:
        if not isinstance(config, SelectiveConfig):
            raise ValueError(
                f"{type(config).__name__}: the model has selective adapters, beside which PEFT does"
                " not save those of another method. Let the others come first: model.unload(),"
                " peft = get_peft_model(model, config), then sft.convert(peft, plan): both train,"
                " and torch.save(peft.state_dict(), path) holds both"
            )


class SelectiveModel(BaseTuner):
    """The model with selective adapters, as `peft.get_peft_model` makes it.

    What trains is an ordinary Parameter for each layer, `selective_slot.<adapter>.values`, fp32
    over 16-bit weights; gradient, optimiser state and the adapter's file are of the selected
    entries alone, and losses are those of `sparse_ft.convert` with the same plan, bit for bit.
    """

    prefix = PREFIX
    tuner_layer_cls = SelectiveLayer
    target_module_mapping: dict[str, list[str]] = {}

    @property
    def peft_config(self) -> "Configs":
        """{adapter: its config}."""
        try:
            return self.__dict__["configs"]
        except KeyError:
            raise AttributeError("peft_config") from None

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        is_guarded = isinstance(configs, Configs)
        self.__dict__["configs"] = configs if is_guarded else Configs(configs)

    def _pre_injection_hook(
        self, model: nn.Module, config: SelectiveConfig, adapter_name: str
    ) -> None:
        try:
            check_alone(model)
        except ValueError:
            # PEFT has put it beside the configs that the model had already.
            self.peft_config.pop(adapter_name, None)
            raise

    def _prepare_adapter_config(
        self, peft_config: SelectiveConfig, model_config: dict
    ) -> SelectiveConfig:
        return peft_config  # without targets, the choice names them

    def _prepare_model(self, peft_config: SelectiveConfig, model: nn.Module) -> None:
        """Choose and check everything before anything of the model is changed."""
        self.chosen = self._of_twin(peft_config, model) or choose(peft_config, model)
        peft_config.target_modules = set(self.chosen)

    def _of_twin(self, config: SelectiveConfig, model: nn.Module) -> dict[str, Selection]:
        """{module: selection} of an adapter that was made with this very config.

        TRL copies an adapter that way, to have it as the reference.
        """
        twins = [name for name, each in self.peft_config.items() if each is config]
        return {
            layer.label: layer._slot(name).selection
            for layer in _layers(model)
            for name in twins
            if name in layer.selective_slot
        }

    def _create_and_replace(
        self,
        peft_config: SelectiveConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if current_key not in self.chosen:
            return  # PEFT matches ends of names, too
        layer = target
        if not isinstance(layer, SelectiveLayer):
            layer = SelectiveLayer(target, current_key)
        layer.add(adapter_name, self.chosen[current_key])
        if layer is not target:
            setattr(parent, target_name, layer)
        if adapter_name not in self.active_adapters:
            layer.selective_slot[adapter_name].requires_grad_(False)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: SelectiveConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """Values and index of each layer; the config learns what they look like."""
        found = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        layers = [layer for layer in _layers(model) if adapter_name in layer.selective_slot]
        config.selections = {
            layer.label: describe_slot(layer._slot(adapter_name)) for layer in layers
        }
        return {key: tensor for key, tensor in found.items() if not key.endswith(".base")}

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> Iterator[None]:
        if adapter_names is not None:
            raise ValueError(
                "adapter_names: a batch of several adapters is not for selective ones, which"
                " replace entries of the one weight; call set_adapter and run them one by one"
            )
        yield


def _layers(model: nn.Module) -> Iterator[SelectiveLayer]:
    return (module for module in model.modules() if isinstance(module, SelectiveLayer))
